"""A layer that really asks for more memory than any machine has, where a pass is too large."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

FAR_TOO_MUCH = 1 << 60


def ask() -> None:
    """The allocator's own error."""
    torch.empty(FAR_TOO_MUCH, dtype=torch.uint8)


def greedy(
    model: nn.Module, fits: Callable[[Tensor], bool], *, mode: str = "both", backward: bool = False
) -> RemovableHandle:
    """Lets a model's second layer ask for it where its hidden states do not fit: in `training`, in
    `evaluation` or in both; or in the backward pass alone, with all later layers' gradients
    there."""

    def run(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        of = "training" if layer.training else "evaluation"
        if mode not in ("both", of) or fits(inputs[0]):
            return
        if not backward:
            ask()
        elif inputs[0].requires_grad:
            inputs[0].register_hook(lambda _: ask())

    layers = model.get_submodule("model.layers")
    return next(iter(list(layers.children())[1:2])).register_forward_pre_hook(run)


def rows(most: int) -> Callable[[Tensor], bool]:
    """At most so many rows fit."""
    return lambda hidden_BSD: len(hidden_BSD) <= most


def tokens(most: int) -> Callable[[Tensor], bool]:
    """At most so many tokens fit, padding included."""
    return lambda hidden_BSD: hidden_BSD.shape[0] * hidden_BSD.shape[1] <= most
