"""The modules of an adapter: stacked LoRA experts of a linear, and of a feed-forward block.

Shapes: T tokens, D model width, F feed-forward width, E experts, K slots, R rank, I and O the
input and output size of one linear. Parameters are float32; they are cast to the activations' type.
A layer's specification has one number of experts: its own (`AdapterSpec.in_layer`).
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.layers.assignments import ExpertAssignments
from workers.layers.block import (
    ITSELF,
    Adapted,
    Frozen,
    adapt_block,
    adapt_linear,
    adapt_prepared,
    plain_lora,
)
from workers.layers.dispatch import Dispatched, LocalTokenDispatcher, TokenDispatcher
from workers.layers.expert_bank import ExpertBank
from workers.layers.feed_forward import FeedForward, linear_sizes
from workers.layers.inference.prepared import Prepared, PreparedExperts
from workers.layers.mixture.select import Mode
from workers.layers.ops.dora import factor, row_norms
from workers.layers.ops.input_dropout import InputDropout
from workers.layers.routing.base import Router, Routing, Sequences, build_router

_VERSION = attrgetter("_version")


class Recorder(NamedTuple):
    """Is told what a routed place did."""

    note: Callable[[Routing, Sequence[Tensor], Tensor | None], None]
    """Takes the routing, the rank space, and the tokens of the batch that both are of (None: all).
    """
    rank_space: bool = True
    """Whether the rank space is wanted; without, there is none."""


class LoraExperts(nn.Module):
    """E low-rank updates of one linear: lora_A [E, R, I] ([1, R, I] if shared), lora_B [E, O, R],
    with DoRA also lora_magnitude [E, O]."""

    def __init__(self, linear: nn.Module, spec: AdapterSpec) -> None:
        super().__init__()
        in_features, out_features = linear_sizes(linear) or (0, 0)
        num_experts = spec.layer_experts
        self.scale = spec.scale(in_features)
        self._shares_a = spec.shared_a
        ways_in = 1 if spec.shared_a else num_experts
        self.lora_A = nn.Parameter(torch.zeros(ways_in, spec.rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(num_experts, out_features, spec.rank))
        self._serving: tuple[object, ExpertBank] | None = None
        self.lora_magnitude: nn.Parameter | None = None
        if spec.use_dora:
            norm_O = row_norms(linear)
            self.lora_magnitude = nn.Parameter(norm_O.repeat(num_experts, 1))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """A: Kaiming-uniform(sqrt 5) for each expert; B: zero."""
        for lora_A_RI in self.lora_A:
            nn.init.kaiming_uniform_(lora_A_RI, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B)

    def bank(self, linear: nn.Module, dtype: torch.dtype) -> ExpertBank:
        """The experts as a bank of their own, in the activations' type.

        In inference it is made once, and again when a weight has changed.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._serving = None  # Some optimizers change weights without leaving a trace on them.
            return self.bank_of(linear, self.stacked(dtype), dtype)
        state = self.state(dtype)
        if self._serving is None or self._serving[0] != state:
            bank = self.bank_of(linear, self.stacked(dtype), dtype)
            self._serving = state, bank.for_service()
        return self._serving[1]

    def state(self, dtype: torch.dtype) -> tuple[object, ...]:
        """Changes whenever what `bank` would give in inference changes."""
        weights = (self.lora_A, self.lora_B)
        magnitude = self.lora_magnitude
        return _state(self, dtype, weights if magnitude is None else (*weights, magnitude))

    def train(self, mode: bool = True) -> Self:
        """Forget what was made to serve: some optimizers change weights without a trace, and it may
        be of experts that live elsewhere."""
        if mode:
            self._serving = None
        return super().train(mode)

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """Those with a row for each expert: all but an A that they share."""
        shared = "lora_A" if self._shares_a else ""
        own = self.named_parameters(recurse=False)
        return {name: parameter for name, parameter in own if name != shared}

    def stacked(self, dtype: torch.dtype) -> list[Tensor]:
        """The expert parameters, as `bank_of` takes them."""
        # DoRA's norms want what the optimizer holds.
        kept = self.lora_magnitude is not None
        own = LoraExperts.expert_parameters(self).values()
        return [one if kept else one.to(dtype) for one in own]

    def bank_of(
        self, linear: nn.Module, stacked: Sequence[Tensor], dtype: torch.dtype
    ) -> ExpertBank:
        """The bank of these experts: `stacked` of ours, or of more that live elsewhere."""
        named = dict(zip(LoraExperts.expert_parameters(self), stacked, strict=True))
        lora_B = named["lora_B"]
        lora_A = named.get("lora_A", self.lora_A)
        all_A = lora_A.to(dtype)
        if self._shares_a:
            all_A = all_A.repeat(len(lora_B), 1, 1)
        if "lora_magnitude" not in named:
            return ExpertBank(all_A, lora_B.to(dtype), self.scale)
        factor_NO = factor(named["lora_magnitude"], linear, lora_A, lora_B, self.scale)
        return ExpertBank(all_A, lora_B.to(dtype), self.scale, factor_NO)


class LinearExperts(LoraExperts):
    """y = W x + s sum_e g_e B_e A_e x (MoELoRA); with one expert plain LoRA, without a router."""

    def __init__(self, linear: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(linear, spec)
        self.rate = spec.dropout
        self.inputs = InputDropout()
        """Shared with the other linears of its adapter."""
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.recorder: Recorder | None = None
        self.compared = (ITSELF,)
        self.router: Router | None = None
        if spec.is_routed:
            self.router = build_router(self.lora_A.shape[-1], len(self.lora_B), spec)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise the router, then the experts."""
        if self.router is not None:
            self.router.reset_parameters(generator)
        super().reset_parameters(generator)

    def forward(self, linear: nn.Module, hidden_TI: Tensor, sequences: Sequences = None) -> Tensor:
        """The frozen `linear` with its update; `sequences` as in Router."""
        rate = self.rate if self.training else 0.0
        dtype = hidden_TI.dtype
        if self.router is None:
            dropped_TI = self.inputs(hidden_TI, rate)
            return plain_lora(linear, self.bank(linear, dtype), hidden_TI, dropped_TI)
        routing = self.router(hidden_TI, sequences)
        sent = self.dispatcher.dispatch(hidden_TI, routing)
        assignments = _assignments(sent, self.router)
        with self.dispatcher.experts(partial(self.stacked, dtype), sent) as whole:
            bank = self.bank_of(linear, whole, dtype) if whole else self.bank(linear, dtype)
            frozen = Frozen.of(linear, hidden_TI)
            onto = _nothing(sent, frozen) if sent.moved else frozen
            dropped_nD = self.inputs(sent.hidden_nD, rate)
            adapted = adapt_linear(onto, bank, assignments, dropped_nD)
        output_TO = _returned(self, adapted, routing, sent)
        return frozen.output_TO + output_TO if sent.moved else output_TO

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """As of LoraExperts; plain LoRA has none."""
        return {} if self.router is None else super().expert_parameters()


class BlockExperts(nn.Module):
    """A feed-forward block as E experts that share its frozen weights (MixLoRA).

    h_e = combine(W_i x + s B_i,e A_i,e x); y = W2 (sum_e g_e h_e) + sum_e g_e s B2_e A2_e h_e.
    By linearity the frozen outer linear W2 runs once for each token, not once for each choice.
    """

    def __init__(self, block: FeedForward, spec: AdapterSpec, targets: Collection[str]) -> None:
        super().__init__()
        self.rate = spec.dropout
        self.fused = True
        """Take the GPU kernel where there is one; benchmarks switch it off."""
        self.ranks = spec.layer_experts * spec.rank
        self._ready = PreparedExperts(capacity=1)
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.recorder: Recorder | None = None
        self.compared = tuple(name for name in block.inner if name in targets) or block.outer[:1]
        """Projections whose rank space is recorded: the outer one's only if it is alone."""
        self.router = build_router(block.width, spec.layer_experts, spec)
        self.projections = nn.ModuleDict(
            {
                name: LoraExperts(block.linears[name], spec)
                for name in block.linears
                if name in targets
            }
        )
        self._weights = list(self.projections.parameters())

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise the router, then the experts of each projection."""
        self.router.reset_parameters(generator)
        for _, experts in self._experts():
            experts.reset_parameters(generator)

    def train(self, mode: bool = True) -> Self:
        """Forget what was prepared, as LoraExperts do."""
        if mode:
            self._ready.forget()
        return super().train(mode)

    def state(self, dtype: torch.dtype) -> tuple[object, ...]:
        """Changes whenever what `banks` would give changes."""
        return _state(self, dtype, self._weights)

    def banks(self, block: FeedForward, dtype: torch.dtype) -> dict[str, ExpertBank]:
        """The experts of every adapted linear."""
        return {name: experts.bank(block.linears[name], dtype) for name, experts in self._experts()}

    def forward(self, block: FeedForward, hidden_TD: Tensor, sequences: Sequences = None) -> Tensor:
        """The frozen `block` with its experts; `sequences` as in Router."""
        made = self._prepared(block, hidden_TD)
        if made is not None and made.router is not None:
            assignments = made.router.route(hidden_TD)
            return block.leave(adapt_prepared(block, made, hidden_TD, assignments))
        routing = self.router(hidden_TD, sequences)
        if made is not None:
            expert_TK, gate_TK = routing.expert_TK, routing.gate_TK
            assignments = ExpertAssignments(
                expert_TK, gate_TK, made.experts, apart=self.router.has_voids
            )
            return block.leave(adapt_prepared(block, made, hidden_TD, assignments))
        sent = self.dispatcher.dispatch(hidden_TD, routing)
        assignments = _assignments(sent, self.router)
        mode = Mode(self.rate if self.training else 0.0, self.fused)
        dtype = hidden_TD.dtype
        with self.dispatcher.experts(partial(self._stacked, dtype), sent) as whole:
            banks = self._banks_of(block, whole, dtype) if whole else self.banks(block, dtype)
            adapted = adapt_block(block, banks, assignments, sent.hidden_nD, mode)
        return block.leave(_returned(self, adapted, routing, sent))

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """Of all projections, by name."""
        return {
            f"projections.{name}.{own}": parameter
            for name, experts in self._experts()
            for own, parameter in experts.expert_parameters().items()
        }

    def _experts(self) -> Iterator[tuple[str, LoraExperts]]:
        return ((name, cast(LoraExperts, one)) for name, one in self.projections.items())

    def _stacked(self, dtype: torch.dtype) -> list[Tensor]:
        return [one for _, experts in self._experts() for one in experts.stacked(dtype)]

    def _banks_of(
        self, block: FeedForward, stacked: Sequence[Tensor], dtype: torch.dtype
    ) -> dict[str, ExpertBank]:
        banks, left = {}, iter(stacked)
        for name, experts in self._experts():
            own = list(islice(left, len(experts.expert_parameters())))
            banks[name] = experts.bank_of(block.linears[name], own, dtype)
        return banks

    @property
    def is_watched(self) -> bool:
        """Whether it trains or is asked what it does: a decoding step's short way does neither."""
        return self.training or self.recorder is not None

    def _prepared(self, block: FeedForward, hidden_TD: Tensor) -> Prepared | None:
        if self.is_watched or not isinstance(self.dispatcher, LocalTokenDispatcher):
            return None
        return self._ready.of(block, [self], hidden_TD)


def _state(layer: nn.Module, dtype: torch.dtype, weights: Sequence[Tensor]) -> tuple[object, ...]:
    # Asked at every step of every layer: loops in C.
    return id(layer), dtype, *map(Tensor.data_ptr, weights), *map(_VERSION, weights)


def _assignments(sent: Dispatched, router: Router) -> ExpertAssignments:
    return ExpertAssignments(
        sent.expert_nK, sent.gate_nK, sent.experts, router.has_voids or sent.moved
    )


def _nothing(sent: Dispatched, frozen: Frozen) -> Frozen:
    """For rows from elsewhere: their frozen output is where they came from."""
    like_TO = frozen.output_TO
    return Frozen(like_TO.new_zeros(len(sent.hidden_nD), like_TO.shape[1]), None)


def _returned(
    layer: LinearExperts | BlockExperts, adapted: Adapted, routing: Routing, sent: Dispatched
) -> Tensor:
    """The output of each token; a recorder is told."""
    terms = adapted.terms(layer.compared) if layer.dispatcher.brings_rank_space else ()
    output_TO, *terms_TKR = layer.dispatcher.combine([adapted.output_TO, *terms], sent)
    recorder = layer.recorder
    if recorder is not None:
        recorder.note(routing, terms_TKR if recorder.rank_space else (), None)
    return output_TO
