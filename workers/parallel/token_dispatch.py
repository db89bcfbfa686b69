"""Expert parallelism by tokens: hidden states go to the owners of their experts, results come back.

A token goes to each owner once, however many of its experts live there. The owner runs the frozen
block on it, with the gates of its own experts, so that a token's shares add up to the whole block
(by linearity the frozen outer linear runs once for each row that arrives).
Shapes: T tokens, W workers, K slots, n rows sent, m rows received, D width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from workers.layers.dispatch import Dispatched
from workers.layers.routing.base import Routing
from workers.parallel.collectives import ExchangeSizes, Traffic, all_to_all
from workers.parallel.world import World


class Journey(NamedTuple):
    """Where rows went."""

    route: ExchangeSizes
    token_n: Tensor
    """The token of each row sent."""
    tokens: int


class AllToAllTokenDispatcher:
    """A TokenDispatcher over the workers that share a copy of the experts, E / W on each."""

    def __init__(self, group: World, traffic: Traffic, *, brings_rank_space: bool = False) -> None:
        self._group, self._traffic = group, traffic
        self.brings_rank_space = brings_rank_space

    def dispatch(self, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Send each token once to each owner of its experts. Void slots with a gate stay here: they
        are the frozen block alone, which every worker has."""
        own = routing.logits_TE.shape[1] // self._group.size
        expert_TK, gate_TK = routing.expert_TK, routing.gate_TK
        is_void_TK = expert_TK == routing.logits_TE.shape[1]
        owner_TK = (expert_TK // own).masked_fill(is_void_TK, self._group.rank)
        counts_TK = ~is_void_TK | (gate_TK.detach() != 0)
        worker_W1 = torch.arange(self._group.size, device=expert_TK.device).view(-1, 1, 1)
        goes_WTK = (owner_TK == worker_W1) & counts_TK
        goes_WT = goes_WTK.any(-1)
        worker_n, token_n = goes_WT.nonzero(as_tuple=True)
        route = ExchangeSizes.plan(self._group, goes_WT.sum(1), self._traffic)
        mine_nK = goes_WTK[worker_n, token_n]
        local_nK = (expert_TK[token_n] - worker_n.unsqueeze(1) * own).where(mine_nK, own)
        local_nK = local_nK.masked_fill(is_void_TK[token_n], own)
        return Dispatched(
            all_to_all(route, "hidden", hidden_TD[token_n]),
            route.move("experts", local_nK),
            all_to_all(route, "gates", gate_TK[token_n] * mine_nK),
            own,
            moved=True,
            journey=Journey(route.back, token_n, len(hidden_TD)),
        )

    def experts(
        self, shards: Callable[[], Sequence[Tensor]], sent: Dispatched
    ) -> AbstractContextManager[None]:
        """Those that live here are what the rows want."""
        del shards, sent
        return nullcontext()

    def combine(self, parts: Sequence[Tensor], sent: Dispatched) -> list[Tensor]:
        """Bring the results home, all parts in one message, and add up each token's shares."""
        journey: Journey = sent.journey
        sizes = [part.shape[1:].numel() for part in parts]
        rows_mX = torch.cat([part.flatten(1) for part in parts], dim=1)
        rows_nX = all_to_all(journey.route, "outputs", rows_mX)
        sum_TX = rows_nX.new_zeros(journey.tokens, rows_nX.shape[1])
        sum_TX = sum_TX.index_add(0, journey.token_n, rows_nX)
        split = torch.split(sum_TX, sizes, dim=1)
        return [one.view(-1, *part.shape[1:]) for one, part in zip(split, parts, strict=True)]
