"""One router for several adapters that share a decoding step.

Their routers lie in one matrix, and every token may choose among its own adapter's experts only.
Shapes: T tokens, D width, M members (adapters, or the bare base), N experts of all, K slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.assignments import ExpertAssignments
from workers.layers.routing.base import Router, RoutingDecision, level

JOINT_GATES = ("renormalised", "equal")
"""Those that are a softmax over the slots."""


class JointRouter(NamedTuple):
    """Top-k routers with renormalised or equal gates, in inference."""

    routers: tuple[Router | None, ...]
    slots: int
    weight_ND: Tensor
    """At least float32, divided by each adapter's temperature; with several members one row more,
    of zeros, for the void."""
    other_MN: Tensor | None
    """For several members: True where an expert is not the member's own; the last one is the void,
    which is the bare base's own."""
    beyond_MK: Tensor | None
    """True for the slots that a member does not have; None if all have the same."""
    equal_M1: Tensor | None
    """True for members with equal gates; None if none has them."""

    def route(self, hidden_TD: Tensor, member_T: Tensor | None = None) -> ExpertAssignments:
        """The pairs of the joint bank; `member_T` says whose a token is, None with one member."""
        logits_TN = functional.linear(hidden_TD.to(self.weight_ND.dtype), self.weight_ND)
        if self.other_MN is not None:  # not added to: what others' routers give may be infinite
            logits_TN.masked_fill_(self.other_MN[member_T], -torch.inf)
        top_TK, expert_TK = logits_TN.topk(self.slots, dim=-1)
        if self.beyond_MK is not None:
            top_TK.masked_fill_(self.beyond_MK[member_T], -torch.inf)
        if self.other_MN is not None:  # beyond what a member has, topk gives experts of others
            expert_TK.masked_fill_(top_TK == -torch.inf, len(self.weight_ND) - 1)
        gate_TK = self._leveled(top_TK, member_T).softmax(-1)
        observer = next(router.observer for router in self.routers if router is not None)
        if observer is not None:
            observer(RoutingDecision(self.routers, logits_TN, expert_TK, gate_TK))
        apart = self.other_MN is not None
        return ExpertAssignments(expert_TK, gate_TK, len(self.weight_ND), apart=apart)

    def _leveled(self, top_TK: Tensor, member_T: Tensor | None) -> Tensor:
        """The slots' logits, all the same for members with equal gates."""
        if self.equal_M1 is None:
            return top_TK
        equal_T1 = self.equal_M1 if member_T is None else self.equal_M1[member_T]
        return torch.where(equal_T1, level(top_TK), top_TK)


def join_routers(routers: Sequence[Router | None]) -> JointRouter | None:
    """The members' routers as one, in their order; None stands for the bare base. No joint router
    where a strategy, or gates that do not sum to 1, want a router's own."""
    given = [router for router in routers if router is not None]
    specs = [one.spec for one in given]
    if any(not one.strategy.joint or one.gate_form not in JOINT_GATES for one in specs):
        return None
    dtype = torch.promote_types(given[0].weight.dtype, torch.float32)
    weights = [one.weight.to(dtype) / one.spec.router_temperature for one in given]
    slots = max(one.slots for one in given)
    equal_M1 = _equal(routers, weights[0].device)
    if len(routers) == 1:
        return JointRouter(tuple(routers), slots, weights[0], None, None, equal_M1)
    weight_ND = functional.pad(torch.cat(weights), (0, 0, 0, 1))
    other_MN = weight_ND.new_ones(len(routers), len(weight_ND), dtype=torch.bool)
    beyond_MK = torch.zeros_like(other_MN[:, :slots])
    first = 0
    for member, router in enumerate(routers):
        if router is None:
            other_MN[member, -1] = False
            continue
        other_MN[member, first : first + len(router.weight)] = False
        beyond_MK[member, router.slots :] = True
        first += len(router.weight)
    same = all(one.slots == slots for one in given)
    beyond = None if same else beyond_MK
    return JointRouter(tuple(routers), slots, weight_ND, other_MN, beyond, equal_M1)


def _equal(routers: Sequence[Router | None], device: torch.device) -> Tensor | None:
    """True for the members with equal gates, [M, 1]; None if there are none."""
    equal = [router is not None and router.spec.gate_form == "equal" for router in routers]
    return torch.tensor(equal, device=device).unsqueeze(1) if any(equal) else None
