"""The modules of an adapter: stacked LoRA experts of a linear, and of a feed-forward block.

Shapes: T tokens, D model width, F feed-forward width, E experts, K slots, R rank, I and O the
input and output size of one linear. Parameters are float32; they are cast to the activations' type.
A layer's specification has one number of experts: its own (`AdapterSpec.in_layer`).
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from workers.layers import dropout
from workers.layers.bank import Bank
from workers.layers.dispatch import Dispatched, LocalTokenDispatcher, TokenDispatcher
from workers.layers.dora import magnitude, row_norms
from workers.layers.feed_forward import FeedForward, linear_sizes
from workers.layers.mixture import Inner, mixture
from workers.layers.pairs import Pairs
from workers.layers.router import Router, Routing
from workers.spec import AdapterSpec


class Adapted(NamedTuple):
    """What an adapted place gives, and what losses want to know of it."""

    output_TO: Tensor
    rank_space: tuple[Tensor, ...] = ()
    """A_e dropout(x) of each slot's expert, [T, K, R], one for each routed projection; zero in void
    slots, and up to a factor (the contrastive loss normalises)."""


Recorder = Callable[[Routing, tuple[Tensor, ...], Tensor | None], None]
"""Is told what a routed place did, and with which tokens of the batch (None: all)."""


class LoraExperts(nn.Module):
    """E low-rank updates of one linear: lora_A [E, R, I] ([1, R, I] if shared), lora_B [E, O, R],
    with DoRA also lora_magnitude [E, O]."""

    def __init__(self, linear: nn.Module, spec: AdapterSpec) -> None:
        super().__init__()
        in_features, out_features = linear_sizes(linear) or (0, 0)
        num_experts = spec.experts_in(0, 1)
        self.scale = spec.scale
        ways_in = 1 if spec.shared_a else num_experts
        self.lora_A = nn.Parameter(torch.zeros(ways_in, spec.rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(num_experts, out_features, spec.rank))
        self.lora_magnitude: nn.Parameter | None = None
        if spec.use_dora:
            norm_O = row_norms(linear)
            self.lora_magnitude = nn.Parameter(norm_O.repeat(num_experts, 1))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """A: Kaiming-uniform(sqrt 5) for each expert; B: zero."""
        for lora_A_RI in self.lora_A:
            nn.init.kaiming_uniform_(lora_A_RI, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B)

    def bank(self, linear: nn.Module, dtype: torch.dtype) -> Bank:
        """The experts as a bank of their own, in the activations' type."""
        lora_A, lora_B = self.lora_A.to(dtype), self.lora_B.to(dtype)
        if len(lora_A) < len(lora_B):
            lora_A = lora_A.repeat(len(lora_B), 1, 1)
        if self.lora_magnitude is None:
            return Bank(lora_A, lora_B, self.scale)
        factor_NO = magnitude(self.lora_magnitude, linear, self.lora_A, self.lora_B, self.scale)
        return Bank(lora_A, lora_B, self.scale, factor_NO.to(dtype))


class LinearExperts(LoraExperts):
    """y = W x + s sum_e g_e B_e A_e x (MoELoRA); with one expert plain LoRA, without a router."""

    def __init__(self, linear: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(linear, spec)
        self.rate = spec.dropout
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.recorder: Recorder | None = None
        self.router: Router | None = None
        if spec.is_routed:
            self.router = Router(self.lora_A.shape[-1], len(self.lora_B), spec)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise the router, then the experts."""
        if self.router is not None:
            self.router.reset_parameters(generator)
        super().reset_parameters(generator)

    def forward(self, linear: nn.Module, hidden_TI: Tensor, length: int | None = None) -> Tensor:
        """The frozen `linear` with its update; `length` as in Router."""
        rate = self.rate if self.training else 0.0
        bank = self.bank(linear, hidden_TI.dtype)
        if self.router is None:
            return plain_lora(linear, bank, hidden_TI, rate)
        routing = self.router(hidden_TI, length)
        sent = self.dispatcher.dispatch(hidden_TI, routing)
        adapted = adapt_linear(linear, bank, _pairs(sent, self.router), sent.hidden_nD, rate)
        if self.recorder is not None:
            self.recorder(routing, adapted.rank_space, None)
        return self.dispatcher.combine(adapted.output_TO, sent)


class BlockExperts(nn.Module):
    """A feed-forward block as E experts that share its frozen weights (MixLoRA).

    h_e = combine(W_i x + s B_i,e A_i,e x); y = W2 (sum_e g_e h_e) + sum_e g_e s B2_e A2_e h_e.
    By linearity the frozen outer linear W2 runs once for each token, not once for each choice.
    """

    def __init__(self, block: FeedForward, spec: AdapterSpec, targets: Collection[str]) -> None:
        super().__init__()
        self.rate = spec.dropout
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.recorder: Recorder | None = None
        self.router = Router(block.width, spec.experts_in(0, 1), spec)
        self.projections = nn.ModuleDict(
            {
                name: LoraExperts(block.linears[name], spec)
                for name in block.linears
                if name in targets
            }
        )

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise the router, then the experts of each projection."""
        self.router.reset_parameters(generator)
        for experts in self.projections.values():
            cast(LoraExperts, experts).reset_parameters(generator)

    def banks(self, block: FeedForward, dtype: torch.dtype) -> dict[str, Bank]:
        """The experts of every adapted linear."""
        return {
            name: cast(LoraExperts, experts).bank(block.linears[name], dtype)
            for name, experts in self.projections.items()
        }

    def forward(self, block: FeedForward, hidden_TD: Tensor, length: int | None = None) -> Tensor:
        """The frozen `block` with its experts; `length` as in Router."""
        routing = self.router(hidden_TD, length)
        sent = self.dispatcher.dispatch(hidden_TD, routing)
        rate = self.rate if self.training else 0.0
        banks = self.banks(block, hidden_TD.dtype)
        adapted = adapt_block(block, banks, _pairs(sent, self.router), sent.hidden_nD, rate)
        if self.recorder is not None:
            self.recorder(routing, adapted.rank_space, None)
        return self.dispatcher.combine(adapted.output_TO, sent)


def plain_lora(linear: nn.Module, bank: Bank, hidden_TI: Tensor, rate: float) -> Tensor:
    """y = W x + s B A dropout(x); with DoRA its features are scaled."""
    frozen_TO: Tensor = linear(hidden_TI)
    kept = dropout.draw(hidden_TI, hidden_TI.shape[1], rate)
    dropped_TI = kept.drop(hidden_TI) if kept else hidden_TI
    scale = cast(float, bank.scale) * (cast(float, kept.gain) if kept else 1.0)
    rank_space_TR = nn.functional.linear(dropped_TI, bank.lora_A_NRI[0]) * scale
    if bank.magnitude_NO is None:
        return frozen_TO.addmm(rank_space_TR, bank.lora_B_NOR[0].T)
    update_TO = rank_space_TR @ bank.lora_B_NOR[0].T
    return (
        frozen_TO
        + (bank.magnitude_NO - 1) * _without_bias(linear, frozen_TO)
        + (bank.magnitude_NO * update_TO)
    )


def adapt_linear(
    linear: nn.Module, bank: Bank, pairs: Pairs, hidden_TI: Tensor, rate: float | Tensor
) -> Adapted:
    """y = W x + s sum_k g_k B_e A_e dropout(x), e the expert of slot k."""
    frozen_TO = linear(hidden_TI)
    rank_space_TKR = _project(bank, pairs, hidden_TI, rate)
    gate_TK1 = pairs.gate_TK.to(rank_space_TKR.dtype).unsqueeze(-1)
    if bank.magnitude_NO is not None:
        weight_TN = pairs.spread_sum(pairs.masked(gate_TK1)).squeeze(-1)
        factor_TO = weight_TN @ (bank.magnitude_NO - 1)
        frozen_TO = frozen_TO + factor_TO * _without_bias(linear, frozen_TO)
        bank = bank._replace(lora_B_NOR=bank.lora_B_NOR * bank.magnitude_NO.unsqueeze(-1))
    output_TO = bank.expand(rank_space_TKR * gate_TK1, pairs, frozen_TO)
    return Adapted(output_TO, (rank_space_TKR,))


def adapt_block(
    block: FeedForward,
    banks: Mapping[str, Bank],
    pairs: Pairs,
    hidden_TD: Tensor,
    rate: float | Tensor,
) -> Adapted:
    """The frozen block with the experts in `banks`, by name of the linear."""
    kept = dropout.draw(hidden_TD, hidden_TD.shape[1], rate)
    inner = []
    for name, linear in block.inner.items():
        bank = banks.get(name)
        rank_space_TKR = None if bank is None else _project(bank, pairs, hidden_TD, kept)
        inner.append(Inner(linear(hidden_TD), rank_space_TKR, bank))
    name, linear = block.outer
    bank = banks.get(name)
    mix_TF, outer_TKR = mixture(block, inner, bank, pairs, rate)
    output_TD = _with_weighed_bias(linear, linear(mix_TF), pairs)
    rank_space = tuple(one.rank_space_TKR for one in inner if one.rank_space_TKR is not None)
    if bank is not None and outer_TKR is not None:
        outer_TKR = bank.scaled(outer_TKR, pairs)
        gate_TK1 = pairs.gate_TK.to(outer_TKR.dtype).unsqueeze(-1)
        output_TD = bank.expand(outer_TKR * gate_TK1, pairs, output_TD)
        rank_space = rank_space or (outer_TKR,)
    return Adapted(block.leave(output_TD), rank_space)


def _pairs(sent: Dispatched, router: Router) -> Pairs:
    return Pairs(sent.expert_nK, sent.gate_nK, router.weight.shape[0], router.has_voids)


def _project(
    bank: Bank, pairs: Pairs, hidden_TI: Tensor, rate: float | Tensor | dropout.Kept | None
) -> Tensor:
    """s A_e dropout(x) of every slot, [T, K, R], zero in void slots."""
    kept = rate
    if isinstance(kept, float | Tensor):
        kept = dropout.draw(hidden_TI, hidden_TI.shape[1], kept)
    if kept is None:
        return bank.scaled(bank.project(hidden_TI, pairs), pairs)
    return kept.gained(bank.scaled(bank.project(kept.drop(hidden_TI), pairs), pairs))


def _without_bias(linear: nn.Module, frozen_TO: Tensor) -> Tensor:
    bias = getattr(linear, "bias", None)
    return frozen_TO if bias is None else frozen_TO - bias


def _with_weighed_bias(linear: nn.Module, output_TO: Tensor, pairs: Pairs) -> Tensor:
    """The outer linear's output with its bias once for each expert, times its gate: the gates sum
    to 1 unless they are raw."""
    bias = getattr(linear, "bias", None)
    if not isinstance(bias, Tensor):
        return output_TO
    excess_T1 = pairs.gate_TK.sum(-1, keepdim=True) - 1
    return output_TO + excess_T1.to(output_TO.dtype) * bias
