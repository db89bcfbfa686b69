"""LoRA on a base's stacked experts: a pair of matrices for each of them, chosen by its own router.

    up_e x + s B1_e A1_e x, and down_e h + s B2_e A2_e h

The frozen products run once for all rows of a batch, whose adapters may differ; each adapter's own
products only meet its own tokens.
Shapes: T tokens of the batch, t those of one adapter, K slots, P pairs sorted by expert, p those of
one adapter, E experts, R rank, D width, I and O the input and output size of one weight.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.layers.assignments import ExpertAssignments
from workers.layers.dispatch import LocalTokenDispatcher, TokenDispatcher
from workers.layers.expert_bank import ExpertBank
from workers.layers.expert_stack import OUTER, ExpertStack
from workers.layers.experts import Recorder
from workers.layers.ops import dropout
from workers.layers.ops.grouped_mm import grouped_mm
from workers.layers.routing.base import Router, Routing


class Choice(NamedTuple):
    """What the base's router decided."""

    expert_TK: Tensor
    gate_TK: Tensor

    def of(self, token_t: Tensor | None) -> "Choice":
        """Of some tokens; None: of all."""
        if token_t is None:
            return self
        return Choice(self.expert_TK[token_t], self.gate_TK[token_t])


class Share(NamedTuple):
    """One adapter's updates, and which tokens of a batch are its own."""

    banks: Mapping[str, ExpertBank]
    """By name of the weight."""
    rate: dropout.Rate
    """Of the dropout."""
    token_t: Tensor | None = None
    """None: all."""


class StackLora(nn.Module):
    """An adapter's layer on stacked experts: lora_A [E, R, I] and lora_B [E, O, R] of each weight
    that it adapts. Parameters are float32; they are cast to the activations' type."""

    def __init__(self, stack: ExpertStack, spec: AdapterSpec, targets: Collection[str]) -> None:
        super().__init__()
        self.rate = spec.dropout
        self.scales = {name: spec.scale(stack.sizes(name)[0]) for name in stack.names}
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.recorder: Recorder | None = None
        """Never told anything: no router of ours decides here."""
        self.router: Router | None = None
        self.compared: tuple[str, ...] = ()
        self.projections = nn.ModuleDict(
            {
                name: _Pairs(stack.experts, *stack.sizes(name), spec.rank)
                for name in stack.names
                if name in targets
            }
        )
        self._serving: tuple[object, dict[str, ExpertBank]] | None = None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """A: Kaiming-uniform(sqrt 5) for each expert; B: zero."""
        for pairs in self.projections.values():
            cast(_Pairs, pairs).reset_parameters(generator)

    def train(self, mode: bool = True) -> Self:
        """Forget what was made to serve: some optimizers change weights without a trace."""
        if mode:
            self._serving = None
        return super().train(mode)

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """All of them: each has a row for each expert."""
        return dict(self.named_parameters())

    def forward(self, stack: ExpertStack, hidden_TD: Tensor, choice: Choice) -> Tensor:
        """The frozen experts with their updates, summed by the gates: [T, D]."""
        logits_TE = choice.gate_TK.new_zeros(1, 1).expand(len(hidden_TD), stack.experts)
        sent = self.dispatcher.dispatch(hidden_TD, Routing(logits_TE, *choice))
        with self.dispatcher.experts(partial(self._stacked, stack.dtype), sent) as whole:
            banks = self._banks_of(whole) if whole else self.banks(stack.dtype)
            output_TD = run_stack(stack, [Share(banks, self._rate)], hidden_TD, choice)
        (output_TD,) = self.dispatcher.combine([output_TD], sent)
        return output_TD

    def share(self, stack: ExpertStack, token_t: Tensor, seed: int | None) -> Share:
        """Its part of a batch that has other adapters' rows too."""
        return Share(self.banks(stack.dtype), dropout.OwnRate(self._rate, seed), token_t)

    def banks(self, dtype: torch.dtype) -> dict[str, ExpertBank]:
        """Its experts by name of the weight; in inference made once, until a weight changes."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._serving = None
            return self._banks_of(self._stacked(dtype))
        state = dtype, *((one.data_ptr(), one._version) for one in self.parameters())
        if self._serving is None or self._serving[0] != state:
            self._serving = state, self._banks_of(self._stacked(dtype))
        return self._serving[1]

    @property
    def _rate(self) -> float:
        return self.rate if self.training else 0.0

    def _stacked(self, dtype: torch.dtype) -> list[Tensor]:
        return [one.to(dtype) for one in self.parameters()]

    def _banks_of(self, stacked: Sequence[Tensor]) -> dict[str, ExpertBank]:
        """`stacked` are A and B of each weight, of ours or of more that live elsewhere."""
        pairs = zip(stacked[::2], stacked[1::2], strict=True)
        named = zip(self.projections, pairs, strict=True)
        return {name: ExpertBank(*pair, self.scales[name]) for name, pair in named}


class _Pairs(nn.Module):
    def __init__(self, experts: int, inside: int, outside: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(experts, rank, inside))
        self.lora_B = nn.Parameter(torch.zeros(experts, outside, rank))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for lora_A_RI in self.lora_A:
            nn.init.kaiming_uniform_(lora_A_RI, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B)


def run_stack(
    stack: ExpertStack, shares: Sequence[Share], hidden_TD: Tensor, choice: Choice
) -> Tensor:
    """The frozen experts with the updates of several adapters, each of its own tokens: [T, D].
    Tokens of no share get the bare base."""
    rows_TD = hidden_TD.to(stack.dtype)  # Grouped products are of one type, under autocast too.
    everyone = ExpertAssignments(*choice, stack.experts)
    pairs = everyone.sorted_for(rows_TD, spread=False)  # The frozen matrices are large.
    place_P = torch.empty_like(pairs.order_P)
    place_P[pairs.order_P] = torch.arange(len(place_P), device=place_P.device)
    owned = [_Owned.of(share, choice, everyone, place_P) for share in shares]
    inner_PO = stack.product(stack.inner, rows_TD.index_select(0, pairs.token_P), pairs)
    for one in owned:
        inner_PO = one.add_inner(inner_PO, stack.inner, rows_TD)
    inner_PF = stack.combine(inner_PO)
    output_PD = stack.product(OUTER, inner_PF, pairs)
    for one in owned:
        output_PD = one.add_outer(output_PD, inner_PF)
    gate_P1 = pairs.take(choice.gate_TK).unsqueeze(-1)
    weighed_TKD = pairs.put_back(stack.leave(output_PD) * gate_P1, choice.expert_TK)
    return weighed_TKD.sum(1).to(hidden_TD.dtype)


class _Owned(NamedTuple):
    """A share with its pairs, sorted by expert."""

    share: Share
    assignments: ExpertAssignments
    """Of its tokens."""
    place_p: Tensor | None
    """Where its pairs lie among those of the batch; None: they are all of them."""

    @classmethod
    def of(cls, share: Share, choice: Choice, everyone: ExpertAssignments, place_P: Tensor) -> Self:
        if share.token_t is None:
            return cls(share, everyone, None)
        assignments = ExpertAssignments(*choice.of(share.token_t), everyone.num_experts)
        own_tK = place_P.view_as(choice.expert_TK)[share.token_t]
        return cls(share, assignments, assignments.sorted.take(own_tK))

    def add_inner(self, onto_PO: Tensor, name: str, hidden_TD: Tensor) -> Tensor:
        """onto + s B_e A_e dropout(x), one mask for all experts that read a token."""
        bank = self.share.banks.get(name)
        if bank is None:
            return onto_PO
        token_t = self.share.token_t
        hidden_tD = hidden_TD if token_t is None else hidden_TD[token_t]
        rank_space_tKR = bank.project(dropout.dropped(hidden_tD, self.share.rate), self.assignments)
        return self._expanded(onto_PO, bank, self.assignments.sorted.take(rank_space_tKR))

    def add_outer(self, onto_PO: Tensor, inner_PF: Tensor) -> Tensor:
        """onto + s B_e A_e dropout(h)."""
        bank = self.share.banks.get(OUTER)
        if bank is None:
            return onto_PO
        inner_pF = inner_PF if self.place_p is None else inner_PF[self.place_p]
        lora_A_EIR = bank.lora_A_NRI.transpose(1, 2)
        rank_space_pR = grouped_mm(
            dropout.dropped(inner_pF, self._outer_rate), lora_A_EIR, self.assignments.sorted.groups
        )
        return self._expanded(onto_PO, bank, rank_space_pR)

    @property
    def _outer_rate(self) -> dropout.Rate:
        rate = self.share.rate
        return rate if isinstance(rate, float) else rate.again()

    def _expanded(self, onto_PO: Tensor, bank: ExpertBank, rank_space_pR: Tensor) -> Tensor:
        lora_B_ERO = bank.lora_B_NOR.transpose(1, 2)
        update_pO = grouped_mm(
            rank_space_pR * bank.scale, lora_B_ERO, self.assignments.sorted.groups
        )
        if self.place_p is None:
            return onto_PO + update_pO
        return onto_PO.index_add(0, self.place_p, update_pO)
