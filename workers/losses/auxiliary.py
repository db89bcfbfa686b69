"""Losses, as pure functions of logits, routing decisions and rank-space outputs.

Shapes: B batch, S sequence, T tokens, V vocabulary, E experts, K slots, R rank, N sampled pairs.
Masks are True for real tokens; padding counts nowhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from workers.config.train import LossSpec
from workers.layers.router import Routing
from workers.losses.cross_entropy import cross_entropy, token_losses
from workers.losses.info_nce import info_nce

IGNORED = -100
"""Label of a token that is no target."""


def cross_entropy_sum(logits_BSV: Tensor, labels_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p over the target tokens, in float32, and their number.

    `labels_BS` are the input ids with -100 where no target is; position s predicts s + 1, as in
    Hugging Face models. The logits are read where they lie: to pick the targets' rows would copy
    the step's largest tensor twice, and make a GPU wait for their number.
    """
    next_BS = _next(labels_BS)
    total = cross_entropy(logits_BSV.flatten(0, 1), next_BS.flatten(), IGNORED)
    return total, (next_BS != IGNORED).sum()


def row_losses(logits_BSV: Tensor, labels_BS: Tensor) -> list[tuple[float, int]]:
    """What `cross_entropy_sum` gives for each row alone, summed in float64; without gradients."""
    next_BS = _next(labels_BS)
    loss_T = token_losses(logits_BSV.flatten(0, 1), next_BS.flatten(), IGNORED)
    sum_B = loss_T.view_as(next_BS).cpu().double().sum(-1)
    return list(zip(sum_B.tolist(), (next_BS != IGNORED).sum(-1).tolist(), strict=True))


def expert_load(routing: Routing, mask_T: Tensor | None = None) -> Tensor:
    """What the balance loss wants to know of all ranks, as numbers to sum over them: [E + 2], the
    real tokens sent to each expert (void slots do not count), all real tokens, and 1."""
    real_T1 = _real(routing.logits_TE, mask_T).unsqueeze(1)
    sent = real_T1.expand(routing.expert_TK.shape).flatten()
    void = routing.logits_TE.shape[1]
    count_E = real_T1.new_zeros(void + 1).index_add(0, routing.expert_TK.flatten(), sent)[:-1]
    return torch.cat([count_E, torch.stack([real_T1.sum(), torch.ones_like(real_T1.sum())])])


def load_balance(
    routing: Routing, mask_T: Tensor | None = None, load: Tensor | None = None
) -> Tensor:
    """E * sum_e f_e P_e / K over real tokens: 1 for a uniform router, E / K for a collapsed one.

    f_e is the share of tokens sent to expert e, P_e its mean probability, K the mean number of
    experts of a token: f_e / K is e's share of all (token, expert) pairs. Void slots do not count.
    With a `load`, the sum of `expert_load` over all ranks, f_e is over these and P_e stays local,
    weighted so that the mean over ranks of the loss and of its gradient is what one process with
    all tokens has.
    """
    load = expert_load(routing, mask_T) if load is None else load
    count_E, tokens, ranks = load[:-2], load[-2], load[-1]
    real_T1 = _real(routing.logits_TE, mask_T).unsqueeze(1)
    mean_E = (routing.probs_TE * real_T1).sum(0) * ranks / tokens.clamp(min=1)
    return len(count_E) * (count_E / count_E.sum().clamp(min=1) @ mean_E)


def z_loss(routing: Routing, mask_T: Tensor | None = None) -> Tensor:
    """mean(logsumexp(logits)^2) over real tokens (arXiv 2202.08906)."""
    real_T = _real(routing.logits_TE, mask_T)
    return (routing.logits_TE.logsumexp(-1).square() * real_T).sum() / real_T.sum().clamp(min=1)


def contrastive(
    rank_space: Sequence[Tensor],
    routing: Routing,
    mask_T: Tensor | None = None,
    spec: LossSpec | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Supervised InfoNCE between experts (arXiv 2402.12851, 2004.11362), mean over the terms.

    Each term [T, K, R] is one projection's rank-space output of the slots' experts. Of the
    (token, expert) pairs at most `spec.contrastive_anchors` are drawn; among them those of one
    expert attract each other, all others repel. Void slots are no pairs. No gradient reaches the
    gate. Memory does not grow with T, but for the terms' own gradients.
    """
    spec = spec or LossSpec()
    expert_E = torch.arange(routing.logits_TE.shape[1], device=routing.expert_TK.device)
    mask_T = _real(routing.logits_TE, mask_T).bool()
    real_TK = mask_T.unsqueeze(1) & (routing.expert_TK < len(expert_E))
    draw_N = (torch.rand(real_TK.shape, generator=generator, device=mask_T.device) + real_TK).view(
        -1
    )
    chosen_N = draw_N.topk(min(spec.contrastive_anchors, len(draw_N))).indices
    label_N1, real_N1 = (pair_TK.view(-1, 1)[chosen_N] for pair_TK in (routing.expert_TK, real_TK))
    member_NE = (label_N1 == expert_E) & real_N1
    terms = [
        info_nce(
            term_TKR.flatten(0, 1).index_select(0, chosen_N),
            member_NE,
            spec.contrastive_temperature,
        )
        for term_TKR in rank_space
    ]
    return torch.stack(terms).mean()


def _next(labels_BS: Tensor) -> Tensor:
    """The target that each position predicts: its successor's label."""
    return functional.pad(labels_BS[:, 1:], (0, 1), value=IGNORED)


def _real(like: Tensor, mask_T: Tensor | None) -> Tensor:
    """The mask as numbers, ones where there is none."""
    if mask_T is None:
        return torch.ones(like.shape[0], dtype=like.dtype, device=like.device)
    return mask_T.to(like.dtype)
