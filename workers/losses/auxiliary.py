"""The auxiliary losses, as pure functions of what a routed layer did.

Each takes a `RoutedLayer` and the LossSpec and gives a mean over the layer's real tokens;
`workers.config.losses.AUXILIARY` lists them.
Shapes: T tokens, E experts, K slots, R rank, N sampled pairs.
Masks are True for real tokens; padding counts nowhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workers.config.losses import LossSpec
from workers.layers.routing.base import Routing
from workers.losses.info_nce import info_nce


class RoutedLayer(NamedTuple):
    """What a loss may read of a routed layer's forward pass."""

    routing: Routing
    mask_T: Tensor | None = None
    """True for real tokens; None if all are."""
    rank_space: tuple[Tensor, ...] = ()
    """Rank space of each slot's expert, [T, K, R], one for each routed projection; none unless a
    loss of the run needs it."""


def expert_load(layer: RoutedLayer) -> Tensor:
    """What the balance loss wants to know of all ranks, as numbers to sum over them: [E + 2], the
    real tokens sent to each expert (void slots do not count), all real tokens, and 1."""
    real_T1, wanted_TK = _real(layer).unsqueeze(1), layer.routing.wanted_TK
    sent = real_T1.expand(wanted_TK.shape).flatten()
    void = layer.routing.logits_TE.shape[1]
    count_E = real_T1.new_zeros(void + 1).index_add(0, wanted_TK.flatten(), sent)[:-1]
    return torch.cat([count_E, torch.stack([real_T1.sum(), torch.ones_like(real_T1.sum())])])


def load_balance(layer: RoutedLayer, _spec: LossSpec, load: Tensor | None = None) -> Tensor:
    """E * sum_e f_e P_e / K over real tokens: 1 for a uniform router, E / K for a collapsed one.

    f_e is the share of tokens sent to expert e, P_e its mean probability, K the mean number of
    experts of a token: f_e / K is e's share of all (token, expert) pairs. Void slots do not count.
    With a `load`, the sum of `expert_load` over all ranks, f_e is over these and P_e stays local,
    weighted so that the mean over ranks of the loss and of its gradient is what one process with
    all tokens has.
    """
    load = expert_load(layer) if load is None else load
    count_E, tokens, ranks = load[:-2], load[-2], load[-1]
    real_T1 = _real(layer).unsqueeze(1)
    mean_E = (layer.routing.probs_TE * real_T1).sum(0) * ranks / tokens.clamp(min=1)
    return len(count_E) * (count_E / count_E.sum().clamp(min=1) @ mean_E)


def z_loss(layer: RoutedLayer, _spec: LossSpec) -> Tensor:
    """mean(logsumexp(logits)^2) over real tokens (arXiv 2202.08906)."""
    real_T, square_T = _real(layer), layer.routing.logits_TE.logsumexp(-1).square()
    return (square_T * real_T).sum() / real_T.sum().clamp(min=1)


def contrastive(
    layer: RoutedLayer, spec: LossSpec, generator: torch.Generator | None = None
) -> Tensor:
    """Supervised InfoNCE between experts (arXiv 2402.12851, 2004.11362), mean over the terms.

    A term is one projection's rank space. Of the (token, expert) pairs at most
    `spec.contrastive_anchors` are drawn; among them those of one expert attract each other, all
    others repel. Void slots are no pairs. No gradient reaches the gate. Memory does not grow with
    T, but for the terms' own gradients.
    """
    routing = layer.routing
    expert_E = torch.arange(routing.logits_TE.shape[1], device=routing.expert_TK.device)
    mask_T = _real(layer).bool()
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
        for term_TKR in layer.rank_space
    ]
    return torch.stack(terms).mean()


def _real(layer: RoutedLayer) -> Tensor:
    """The mask as numbers, ones where there is none."""
    like = layer.routing.logits_TE
    if layer.mask_T is None:
        return torch.ones(like.shape[0], dtype=like.dtype, device=like.device)
    return layer.mask_T.to(like.dtype)
