"""How a block makes hidden states of its inner outputs, in place where that is known to be safe.

Shapes: p pairs, O size of an inner linear's output, F the block's inner width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.feed_forward import FeedForward, gated
from workers.layers.ops.activations import activation_name

Pullback = Callable[[Tensor], Sequence[Tensor]]
"""From the gradient of the hidden states to those of the inner outputs; called once."""


def combine(block: FeedForward, inner_pO: Sequence[Tensor]) -> Tensor:
    """`block.combine` for inner outputs that nobody needs afterwards."""
    if _is_swiglu(block):
        gate_pF, up_pF = inner_pO
        return functional.silu(gate_pF, inplace=True).mul_(up_pF)
    return block.combine(*inner_pO)


def with_pullback(block: FeedForward, inner_pO: Sequence[Tensor]) -> tuple[Tensor, Pullback]:
    """The hidden states and their pullback, which may write over the gradient that it gets."""
    if _is_swiglu(block):
        return _swiglu(*inner_pO)
    leaves = [one.requires_grad_() for one in inner_pO]
    with torch.enable_grad():
        hidden_pF = block.combine(*leaves)
    return hidden_pF.detach(), lambda grad_pF: torch.autograd.grad(hidden_pF, leaves, grad_pF)


def _is_swiglu(block: FeedForward) -> bool:
    """What nearly all models have today is worth a path without copies."""
    return block.form is gated and activation_name(block.act) == "silu"


def _swiglu(gate_pF: Tensor, up_pF: Tensor) -> tuple[Tensor, Pullback]:
    acted_pF = functional.silu(gate_pF)

    def pullback(grad_pF: Tensor) -> Sequence[Tensor]:
        up_grad_pF = acted_pF.mul_(grad_pF)
        return torch.ops.aten.silu_backward(grad_pF.mul_(up_pF), gate_pF), up_grad_pF

    return acted_pF * up_pF, pullback
