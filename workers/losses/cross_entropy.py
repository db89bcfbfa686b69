"""Cross-entropy that keeps its input only, in pieces that stay in cache.

torch's own cross-entropy makes three more tensors of the logits' size (log-probabilities, and a
gradient of them that is zero but for one number a row, and of the logits); this makes one, the
gradient of the logits.
Shapes: B batch, S sequence, T tokens, V vocabulary, t tokens of a piece.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

IGNORED = -100
"""Label of a token that is no target."""
PIECE_BYTES = 1024 * 1024
"""Size of a piece in float32 on a CPU, about what its second cache holds."""
PIECES = 4
"""On a GPU, which wants large operations."""


def predicted(labels_BS: Tensor, last: int = IGNORED) -> Tensor:
    """What each position predicts: its successor's label, as in Hugging Face models; of the last
    one `last`. For weights beside labels, too."""
    return functional.pad(labels_BS[:, 1:], (0, 1), value=last)


def cross_entropy(
    logits_TV: Tensor, target_T: Tensor, ignored: int, weight_T: Tensor | None = None
) -> Tensor:
    """Sum of -log softmax(logits)[target] over the tokens whose target is not `ignored`, in at
    least float32, whatever the type of the logits; each times its weight, where they have one."""
    return weighed_losses(logits_TV, target_T, ignored, weight_T).sum()


def weighed_losses(
    logits_TV: Tensor, target_T: Tensor, ignored: int, weight_T: Tensor | None = None
) -> Tensor:
    """What `cross_entropy` sums, [T]."""
    loss_T: Tensor = _CrossEntropy.apply(logits_TV, target_T, ignored, weight_T)  # type: ignore[no-untyped-call]
    return loss_T


def token_losses(logits_TV: Tensor, target_T: Tensor, ignored: int) -> Tensor:
    """-log softmax(logits)[target] of each token, 0 where the target is `ignored`: what
    `cross_entropy` sums, in its precision and its pieces, without gradients."""
    return _losses(logits_TV, target_T, ignored)[0]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, target_T: Tensor, ignored: int, weight_T: Tensor | None
    ) -> Tensor:
        loss_T, normaliser_T, place_T1, share_T = _losses(logits_TV, target_T, ignored)
        if weight_T is not None:
            share_T = share_T * weight_T.to(loss_T.dtype)
            loss_T = loss_T * share_T
        ctx.save_for_backward(logits_TV, normaliser_T, place_T1, share_T)
        return loss_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None, None]:
        logits_TV, normaliser_T, place_T1, share_T = ctx.saved_tensors
        grad_TV, grad_T1 = torch.empty_like(logits_TV), (share_T * grad_T).unsqueeze(1)
        for rows in _pieces(logits_TV):
            probs_tV = (logits_TV[rows] - normaliser_T[rows].unsqueeze(1)).exp_()
            probs_tV *= grad_T1[rows]
            grad_TV[rows] = probs_tV.scatter_add_(1, place_T1[rows], -grad_T1[rows])
        return grad_TV, None, None, None


def _losses(
    logits_TV: Tensor, target_T: Tensor, ignored: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each token's loss and the logarithm of its normaliser, [T]; its target's place, [T, 1], and
    whether it has one, [T]."""
    real_T = target_T != ignored
    place_T1 = target_T.where(real_T, 0).unsqueeze(1)
    precision = torch.promote_types(logits_TV.dtype, torch.float32)
    normaliser_T = torch.empty(len(logits_TV), dtype=precision, device=logits_TV.device)
    for rows in _pieces(logits_TV):
        torch.logsumexp(logits_TV[rows].to(precision), 1, out=normaliser_T[rows])
    loss_T = normaliser_T - logits_TV.gather(1, place_T1).squeeze(1)
    return loss_T.where(real_T, 0), normaliser_T, place_T1, real_T


def _pieces(logits_TV: Tensor) -> Iterator[slice]:
    """Rows of one piece after the other."""
    tokens, vocabulary = logits_TV.shape
    size = max(PIECE_BYTES // (4 * vocabulary), 1)
    if logits_TV.device.type != "cpu":
        size = max(-(-tokens // PIECES), 1)
    return (slice(start, start + size) for start in range(0, tokens, size))
