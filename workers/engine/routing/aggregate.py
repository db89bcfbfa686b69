"""The sums over routers' decisions: one operation each for all places, tokens and requests.

Shapes: P places, T tokens of several passes, N experts of all adapters in the batch, W = N and the
void, K slots, G requests and one more row for tokens that are nobody's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.routing.tally import Choices, Places, RoutingTally, Sums
from workers.layers.routing.base import RoutingDecision


class TokenSpan(NamedTuple):
    """One request's tokens in one forward pass."""

    tally: RoutingTally | None
    tokens: int
    first: int
    """Place of the first among the request's tokens."""


class Member(NamedTuple):
    """An adapter's experts in the common numbering of a batch."""

    slot: str
    first: int
    experts: int
    slots: int


class Layout(NamedTuple):
    """How decisions are to be read."""

    members: tuple[Member, ...]
    others: bool
    """Whether rows of none of them are among the tokens."""
    columns: int
    """Of the logits."""
    slots: int

    def has(self, tally: RoutingTally | None) -> bool:
        """Whether a request's tokens are among those of the decision."""
        return self.others or self.member(tally) is not None

    def member(self, tally: RoutingTally | None) -> Member | None:
        """The request's adapter."""
        mine = (one for one in self.members if tally is not None and one.slot == tally.slot)
        return next(mine, None)


class PassDecisions(NamedTuple):
    """The decisions of one pass, place by place."""

    spans: Sequence[TokenSpan]
    choices: Sequence[RoutingDecision]


NOBODY = Member("", 0, 2, 0)


@torch.inference_mode()
def share_out(layout: Layout, places: Places, parts: Sequence[PassDecisions]) -> None:
    """Add what the tokens of these passes chose to the tallies that they belong to."""
    spans = [span for part in parts for span in part.spans]
    members = {span.tally: layout.member(span.tally) for span in spans}
    owners = [(tally, member) for tally, member in members.items() if tally and member]
    if not owners:
        return
    number: dict[RoutingTally | None, int] = {tally: at for at, (tally, _) in enumerate(owners)}
    decided = _Decided(
        *(_together(parts, field) for field in ("logits_TN", "expert_TK", "gate_TK")),
        owner_T=_each([number.get(span.tally, len(owners)) for span in spans], spans),
        members=[*(member for _, member in owners), NOBODY],
    )
    totals = decided.totals()
    for index, (tally, member) in enumerate(owners):
        own = slice(member.first, member.first + member.experts)
        load, weight, entropy, margin = (one[index] for one in totals)
        sums = Sums(load[:, own], weight[:, own], entropy, margin)
        tally.add(places, sums, decided.choices(index, spans) if tally.by_token else None)


class _Decided:
    """All decisions of a group, and whose they are."""

    def __init__(
        self,
        logits_PTN: Tensor,
        expert_PTK: Tensor,
        gate_PTK: Tensor,
        *,
        owner_T: Tensor,
        members: Sequence[Member],
    ) -> None:
        device = gate_PTK.device
        self._logits_PTN, self._gate_PTK = logits_PTN, gate_PTK
        self._owner_T, self._owners = owner_T.to(device), len(members)
        self._of_T3 = torch.tensor([one[1:] for one in members], device=device)[self._owner_T]
        first_T1, experts_T1, slots_T1 = self._of_T3.unsqueeze(-1).unbind(1)
        slot_K = torch.arange(gate_PTK.shape[-1], device=device)
        own_PTK = expert_PTK - first_T1
        self._real_PTK = (own_PTK >= 0) & (own_PTK < experts_T1) & (slot_K < slots_T1)
        self._own_PTK, self._expert_PTK = own_PTK, expert_PTK

    def totals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Load and weight [G, P, W], entropy and margin [G, P], float64."""
        places, _, columns = self._logits_PTN.shape
        probs_PTN = self._logits_PTN.softmax(-1)
        top_PT2 = probs_PTN.topk(2, dim=-1).values
        entropy_PT = torch.special.entr(probs_PTN).sum(-1) / self._of_T3[:, 1].float().log()
        per_token_TP2 = torch.stack([entropy_PT, top_PT2[..., 0] - top_PT2[..., 1]], -1)
        summed_GP2 = per_token_TP2.new_zeros(self._owners, places, 2, dtype=torch.float64)
        summed_GP2.index_add_(0, self._owner_T, per_token_TP2.transpose(0, 1).double())
        width = columns + 1
        place_P11 = torch.arange(places, device=self._owner_T.device).view(-1, 1, 1)
        row_PT1 = self._owner_T.view(1, -1, 1) * places + place_P11
        cell = (row_PT1 * width + self._expert_PTK.clamp(max=columns)).flatten()
        taken_PTK2 = torch.stack([self._real_PTK, self._real_PTK * self._gate_PTK], -1)
        cells_X2 = summed_GP2.new_zeros(self._owners * places * width, 2)
        cells_X2.index_add_(0, cell, taken_PTK2.view(-1, 2).double())
        load, weight = cells_X2.view(self._owners, places, width, 2).unbind(-1)
        entropy, margin = summed_GP2.unbind(-1)
        return load, weight, entropy, margin

    def choices(self, owner: int, spans: Sequence[TokenSpan]) -> Choices:
        """What each of one request's tokens chose."""
        mine_t = (self._owner_T == owner).nonzero().squeeze(1)
        position_T = torch.cat([torch.arange(s.first, s.first + s.tokens) for s in spans])
        own_PTK = self._own_PTK.masked_fill(~self._real_PTK, -1)
        return Choices(
            position_T[mine_t.cpu()], own_PTK[:, mine_t].cpu(), self._gate_PTK[:, mine_t].cpu()
        )


def _together(parts: Sequence[PassDecisions], field: str) -> Tensor:
    """One field of all decisions, [P, T, ...]."""
    stacks = [torch.stack([getattr(one, field) for one in part.choices]) for part in parts]
    return torch.cat(stacks, dim=1)


def _each(values: Sequence[int], spans: Sequence[TokenSpan]) -> Tensor:
    """A value of every span, for each of its tokens."""
    tokens = torch.tensor([span.tokens for span in spans])
    return torch.tensor(values).repeat_interleave(tokens)
