"""A model's output head by itself: what makes logits of hidden states.

A loss then takes the hidden states where the head would, and never has all logits. What a family
makes of its head's output (soft caps, scales) is its own code, run on what the head gives; a family
whose code cannot be taken apart that way is found out by a look, and has no head here.
Shapes: T tokens, V vocabulary, 1SD and 1SV one row of S positions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class OutputHead:
    """What makes logits of a model's last hidden states."""

    module: nn.Module
    finish: Callable[[Tensor], Tensor]
    """What the family makes of the module's output, [1, S, V]."""

    def __call__(self, hidden_TD: Tensor) -> Tensor:
        """Logits, [T, V]. Inside `instead`, where the weights are whole."""
        # Not through its hooks: those are of the call that this is a part of.
        output_TV = self.module.forward(hidden_TD)
        return self.finish(output_TV.unsqueeze(0)).squeeze(0)

    @property
    def trained(self) -> list[nn.Parameter]:
        """Its weights that are learned."""
        return [one for one in self.module.parameters() if one.requires_grad]

    @contextmanager
    def instead(self, use: Callable[[Tensor], None]) -> Iterator[None]:
        """In forward passes inside the block, `use` gets the head's hidden states, and the model
        gives logits of no position."""
        held: list[Tensor] = []

        def take(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            held.append(args[0])
            return (args[0][:, :0], *args[1:])

        def hand_over(*_: Any) -> None:
            use(held.pop())

        # Between the hooks of layouts that have the weights in shards, which are whole meanwhile.
        hooks = [
            self.module.register_forward_pre_hook(take),
            self.module.register_forward_hook(hand_over, prepend=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def output_head(model: PreTrainedModel) -> OutputHead | None:
    """The head of a model, with weights or without; None where it cannot be taken apart: something
    else is made of hidden states too, or a position's logits are not its own."""
    module = model.get_output_embeddings()
    if module is None:
        return None
    head = OutputHead(module, _Finish(model, module))
    try:
        return head if _each_by_itself(head.finish) else None
    except Exception:  # a program of the model's: it may want anything
        return None


def _each_by_itself(finish: Callable[[Tensor], Tensor]) -> bool:
    drawn = torch.Generator().manual_seed(0)
    output_1SV = 10 * torch.randn(1, 3, 7, generator=drawn)
    logits_1SV = finish(output_1SV)
    parts = [finish(output_1SV[:, at : at + 1]) for at in range(3)]
    return torch.equal(torch.cat(parts, 1), logits_1SV) and finish(output_1SV[:, :0]).shape[1] == 0


class _Finish:
    """A family's own forward pass with nothing before its head's output, and that given."""

    def __init__(self, model: PreTrainedModel, head: nn.Module) -> None:
        self._model, self._head = model, head

    def __call__(self, output_1SV: Tensor) -> Tensor:
        head = _Given(self._head, output_1SV)
        seen = _Parts(self._model, lambda part: head if part is self._head else _Nothing(part))
        ids_1S = torch.zeros(output_1SV.shape[:2], dtype=torch.long, device=output_1SV.device)
        logits: Tensor = type(self._model).forward(seen, ids_1S, use_cache=False).logits
        if head.calls != 1:
            raise ValueError("the head is not called once")
        return logits


class _Parts:
    """An object as it is, but for the modules in it."""

    def __init__(self, real: Any, replace: Callable[[nn.Module], Any]) -> None:
        self._real, self._replace = real, replace

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        return self._replace(value) if isinstance(value, nn.Module) else value


class _Nothing(_Parts):
    """A module that computes nothing: as many hidden states as there are tokens, of width 1."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, _Nothing)

    def __call__(self, *args: Any, **options: Any) -> "_Hidden":
        ids_1S = options["input_ids"] if "input_ids" in options else args[0]
        return _Hidden(ids_1S.new_zeros((*ids_1S.shape, 1), dtype=torch.float32))


class _Hidden:
    """A decoder's output, with nothing in it but the hidden states."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        return (self.last_hidden_state,)[key]


class _Given(_Parts):
    """A head that gives a certain output."""

    def __init__(self, head: nn.Module, output_1SV: Tensor) -> None:
        super().__init__(head, _Nothing)
        self._output_1SV, self.calls = output_1SV, 0

    def __call__(self, hidden_1SD: Tensor) -> Tensor:
        self.calls += 1
        if hidden_1SD.shape[:2] != self._output_1SV.shape[:2]:
            raise ValueError("the head is not called on every position")
        return self._output_1SV
