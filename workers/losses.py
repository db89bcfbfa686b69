"""Losses, as pure functions of logits, routing decisions and rank-space outputs.

Shapes: B batch, S sequence, T tokens, V vocabulary, E experts, K top-k, R rank, N sampled pairs.
Masks are True for real tokens; padding counts nowhere.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.router import Routing
from workers.spec import LossSpec

IGNORED = -100
"""Label of a token that is no target."""

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all data-parallel ranks."""


def cross_entropy_sum(logits_BSV: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p over the target tokens, in float32, and their number.

    `labels_BS` are the input ids with -100 where no target is; position s predicts s + 1, as in
    Hugging Face models. Only rows of target tokens are taken and cast.
    """
    next_BS = labels_BS[:, 1:]
    target_BS = next_BS != IGNORED
    logits_TV = logits_BSV[:, :-1][target_BS]
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    total = functional.cross_entropy(logits_TV, next_BS[target_BS], reduction="sum")
    return total, target_BS.sum()


def load_balance(
    routing: Routing, mask_T: Tensor | None = None, reduce: Reduce | None = None
) -> Tensor:
    """E * sum_e f_e P_e / K over real tokens: 1 for a uniform router, E / K for a collapsed one.

    f_e is the share of tokens sent to expert e, P_e its mean probability. With `reduce`, f_e is
    over all ranks and P_e stays local, weighted so that the mean over ranks of the loss and of its
    gradient is what one process with all tokens has.
    """
    experts, top_k = routing.probs_TE.shape[1], routing.expert_TK.shape[1]
    real_T1 = _real(routing.probs_TE, mask_T).unsqueeze(1)
    counts_E = torch.zeros_like(routing.probs_TE[0]).index_add(
        0, routing.expert_TK.flatten(), real_T1.expand(-1, top_k).flatten()
    )
    tokens, ranks = real_T1.sum(), torch.ones_like(real_T1.sum())
    if reduce is not None:
        both = reduce(torch.cat([counts_E, torch.stack([tokens, ranks])]))
        counts_E, tokens, ranks = both[:-2], both[-2], both[-1]
    tokens = tokens.clamp(min=1)
    mean_E = (routing.probs_TE * real_T1).sum(0) * ranks / tokens
    return experts * (counts_E / tokens @ mean_E) / top_k


def z_loss(routing: Routing, mask_T: Tensor | None = None) -> Tensor:
    """mean(logsumexp(logits)^2) over real tokens (arXiv 2202.08906)."""
    real_T = _real(routing.logits_TE, mask_T)
    return (routing.logits_TE.logsumexp(-1).square() * real_T).sum() / real_T.sum().clamp(min=1)


def contrastive(
    rank_space: Sequence[Tensor],
    expert_TK: Tensor,
    mask_T: Tensor | None = None,
    spec: LossSpec | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Supervised InfoNCE between experts (arXiv 2402.12851, 2004.11362), mean over the terms.

    Each term [T, K, R] is one projection's rank-space output of the chosen experts. Of the
    (token, expert) pairs at most `spec.contrastive_anchors` are drawn; among them those of one
    expert attract each other, all others repel. No gradient reaches the gate.
    """
    spec = spec or LossSpec()
    mask_T = _real(rank_space[0], mask_T).bool()
    real_N = mask_T.unsqueeze(1).expand_as(expert_TK).flatten()
    draw_N = torch.rand(len(real_N), generator=generator, device=real_N.device) + real_N
    chosen_N = draw_N.topk(min(spec.contrastive_anchors, len(real_N))).indices
    label_N, real_N = expert_TK.flatten()[chosen_N], real_N[chosen_N]
    terms = [
        _info_nce(term_TKR.flatten(0, 1)[chosen_N], label_N, real_N, spec.contrastive_temperature)
        for term_TKR in rank_space
    ]
    return torch.stack(terms).mean()


def _info_nce(vectors_NR: Tensor, label_N: Tensor, real_N: Tensor, temperature: float) -> Tensor:
    precision = torch.promote_types(vectors_NR.dtype, torch.float32)
    unit_NR = functional.normalize(vectors_NR.to(precision), dim=-1)
    other_NN = real_N & ~torch.eye(len(real_N), dtype=torch.bool, device=real_N.device)
    positive_NN = other_NN & (label_N.unsqueeze(1) == label_N)
    # The finite floor keeps rows without any other pair free of NaN, in the gradient too.
    similar_NN = (unit_NR @ unit_NR.T / temperature).masked_fill(~other_NN, -1e4)
    log_prob_NN = similar_NN - similar_NN.logsumexp(-1, keepdim=True)
    positives_N = positive_NN.sum(-1) * real_N
    loss_N = -(log_prob_NN * positive_NN).sum(-1) / positives_N.clamp(min=1)
    anchor_N = positives_N > 0
    return (loss_N * anchor_N).sum() / anchor_N.sum().clamp(min=1)


def _real(like: Tensor, mask_T: Tensor | None) -> Tensor:
    """The mask as numbers, ones where there is none."""
    if mask_T is None:
        return torch.ones(like.shape[0], dtype=like.dtype, device=like.device)
    return mask_T.to(like.dtype)
