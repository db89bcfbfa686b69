"""One router for several adapters that share a decoding step.

Their routers lie in one matrix, and every token may choose among its own adapter's experts only.
Shapes: T tokens, D width, M members (adapters, or the bare base), N experts of all, K slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.pairs import Pairs
from workers.layers.router import Choice, Router


class JointRouter(NamedTuple):
    """Top-k routers with renormalised gates, in inference."""

    routers: tuple[Router | None, ...]
    experts: int
    slots: int
    weight_ND: Tensor
    """At least float32, divided by each adapter's temperature; with several members one row more,
    of zeros, for the void."""
    own_MN: Tensor | None
    """For several members: 0 where an expert is the member's own, minus infinity elsewhere; the
    last column is the void, which is the bare base's own."""
    beyond_MK: Tensor | None
    """Minus infinity in the slots that a member does not have; None if all have the same."""

    def route(self, hidden_TD: Tensor, member_T: Tensor | None = None) -> Pairs:
        """The pairs of the joint bank; `member_T` says whose a token is, None with one member."""
        logits_TN = functional.linear(hidden_TD.to(self.weight_ND.dtype), self.weight_ND)
        if self.own_MN is not None and member_T is not None:
            logits_TN += self.own_MN[member_T]
        top_TK, expert_TK = logits_TN.topk(self.slots, dim=-1)
        if self.beyond_MK is not None and member_T is not None:
            top_TK += self.beyond_MK[member_T]
        gate_TK = top_TK.softmax(-1)
        witness = next(router.witness for router in self.routers if router is not None)
        if witness is not None:
            witness(Choice(self.routers, logits_TN, expert_TK, gate_TK))
        return Pairs(expert_TK, gate_TK, self.experts, voids=self.own_MN is not None)


def join_routers(routers: Sequence[Router | None]) -> JointRouter | None:
    """The members' routers as one, in their order; None stands for the bare base. No joint router
    where strategies are others than top-k with gates that sum to 1."""
    given = [router for router in routers if router is not None]
    if any((one.spec.routing, one.spec.gate_form) != ("top_k", "renormalised") for one in given):
        return None
    dtype = torch.promote_types(given[0].weight.dtype, torch.float32)
    weights = [one.weight.to(dtype) / one.spec.router_temperature for one in given]
    experts, slots = sum(map(len, weights)), max(one.slots for one in given)
    if len(routers) == 1:
        return JointRouter(tuple(routers), experts, slots, weights[0], None, None)
    weight_ND = functional.pad(torch.cat(weights), (0, 0, 0, 1))
    own_MN = weight_ND.new_full((len(routers), experts + 1), -torch.inf)
    beyond_MK = weight_ND.new_zeros(len(routers), slots)
    first = 0
    for member, router in enumerate(routers):
        if router is None:
            own_MN[member, -1] = 0
            continue
        own_MN[member, first : first + len(router.weight)] = 0
        beyond_MK[member, router.slots :] = -torch.inf
        first += len(router.weight)
    same = all(one.slots == slots for one in given)
    beyond = None if same else beyond_MK
    return JointRouter(tuple(routers), experts, slots, weight_ND, own_MN, beyond)
