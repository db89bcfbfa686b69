"""Output head and cross-entropy together, in pieces: all logits never lie in memory at once.

The gradient of the hidden states is made in the forward pass, while a piece's logits are there. So
nothing is computed twice, and the backward pass needs no weights, which may lie in shards by then.
Shapes: T target tokens, D model width, V vocabulary, t tokens of a piece.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.losses.cross_entropy import IGNORED, cross_entropy, token_losses, weighed_losses

PIECE_BYTES = {"cpu": 32 * 1024**2, "cuda": 256 * 1024**2}
"""Of a piece's logits in float32. More gain no time: the head is read once a piece."""


def piece_tokens(tokens: int, vocabulary: int, device: str) -> int:
    """Tokens of a piece: as many in each of as few as fit."""
    most = max(PIECE_BYTES["cpu" if device == "cpu" else "cuda"] // (4 * vocabulary), 1)
    pieces = max(-(-tokens // most), 1)
    return max(-(-tokens // pieces), 1)


@dataclass(frozen=True)
class PiecewiseHead:
    """An output head that is asked for the logits of a piece at a time."""

    logits: Callable[[Tensor], Tensor]
    """[t, V], of hidden states [t, D]."""
    trained: Sequence[Tensor]
    """Its weights that learn."""
    size: int
    """Tokens of a piece."""

    def loss(self, hidden_TD: Tensor, target_T: Tensor, weight_T: Tensor | None = None) -> Tensor:
        """Sum of -log p of each target, in at least float32; each times its weight, where they have
        one."""
        total: Tensor = _HeadLoss.apply(self, hidden_TD, target_T, weight_T, *self.trained)  # type: ignore[no-untyped-call]
        return total

    def each(self, hidden_TD: Tensor, target_T: Tensor, weight_T: Tensor | None = None) -> Tensor:
        """What `loss` sums, [T], with gradients: of a head that does not learn."""
        assert not self.trained, "the gradients of its weights are made for all targets together"
        loss_T: Tensor = _EachLoss.apply(self, hidden_TD, target_T, weight_T)  # type: ignore[no-untyped-call]
        return loss_T

    @torch.no_grad()
    def losses(self, hidden_TD: Tensor, target_T: Tensor) -> Tensor:
        """-log p of each target, without gradients."""
        none = _wide(hidden_TD.new_zeros(0))
        each = [
            token_losses(self.logits(hidden_TD[rows]), target_T[rows], IGNORED)
            for rows in self.pieces(target_T)
        ]
        return torch.cat([none, *each])

    def pieces(self, target_T: Tensor) -> Iterator[slice]:
        """One after the other."""
        starts = range(0, len(target_T), self.size)
        return (slice(start, start + self.size) for start in starts)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: PiecewiseHead,
        hidden_TD: Tensor,
        target_T: Tensor,
        weight_T: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        total = _wide(hidden_TD.new_zeros(()))
        grad_TD = torch.empty_like(hidden_TD)
        sums_of = [_wide(torch.zeros_like(one)) for one in parameters]
        for rows in head.pieces(target_T):
            weight_t = None if weight_T is None else weight_T[rows]
            with torch.enable_grad():
                hidden_tD = hidden_TD[rows].detach().requires_grad_()
                loss = cross_entropy(head.logits(hidden_tD), target_T[rows], IGNORED, weight_t)
            grad_TD[rows], *grads = torch.autograd.grad(loss, [hidden_tD, *parameters])
            for sum_of, grad in zip(sums_of, grads, strict=True):
                sum_of.add_(grad)
            total += loss.detach()
        grads = [one.to(weight.dtype) for one, weight in zip(sums_of, parameters, strict=True)]
        ctx.save_for_backward(grad_TD, *grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_TD, *grads = (one * grad.to(one.dtype) for one in ctx.saved_tensors)
        return None, grad_TD, None, None, *grads


class _EachLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: PiecewiseHead, hidden_TD: Tensor, target_T: Tensor, weight_T: Tensor | None
    ) -> Tensor:
        grad_TD, losses = torch.empty_like(hidden_TD), [_wide(hidden_TD.new_zeros(0))]
        for rows in head.pieces(target_T):
            weight_t = None if weight_T is None else weight_T[rows]
            with torch.enable_grad():
                hidden_tD = hidden_TD[rows].detach().requires_grad_()
                logits_tV = head.logits(hidden_tD)
                loss_t = weighed_losses(logits_tV, target_T[rows], IGNORED, weight_t)
            one_t = torch.ones_like(loss_t)
            (grad_TD[rows],) = torch.autograd.grad(loss_t, [hidden_tD], one_t)
            losses.append(loss_t.detach())
        ctx.save_for_backward(grad_TD)
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TD,) = ctx.saved_tensors
        return None, grad_TD * grad_T.unsqueeze(1).to(grad_TD.dtype), None, None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
