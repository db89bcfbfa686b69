"""The modules of an adapter: stacked LoRA experts of a linear, and of a feed-forward block.

Shapes: T tokens, D model width, F feed-forward width, E experts, K slots, R rank, I and O the
input and output size of one linear. Parameters are float32; they are cast to the activations' type.
A layer's specification has one number of experts: its own (`AdapterSpec.in_layer`).
"""

import math
from collections.abc import Callable, Collection
from typing import cast

import torch
from torch import Tensor, nn

from workers.layers.adapt import ITSELF, adapt_block, adapt_few, adapt_linear, plain_lora
from workers.layers.bank import Bank
from workers.layers.dispatch import Dispatched, LocalTokenDispatcher, TokenDispatcher
from workers.layers.dora import factor, row_norms
from workers.layers.feed_forward import FeedForward, linear_sizes
from workers.layers.few import FewTokens, Prepared
from workers.layers.mixture import Mode
from workers.layers.pairs import Pairs
from workers.layers.router import Router, Routing
from workers.spec import AdapterSpec

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
        self._serving: tuple[object, Bank] | None = None
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
        """The experts as a bank of their own, in the activations' type.

        In inference it is made once, and again when a weight has changed.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._serving = None  # Some optimizers change weights without leaving a trace on them.
            return self._made(linear, dtype)
        weights = (self.lora_A, self.lora_B, self.lora_magnitude)
        state = (dtype, *((one.data_ptr(), one._version) for one in weights if one is not None))
        if self._serving is None or self._serving[0] != state:
            self._serving = state, self._made(linear, dtype).for_service()
        return self._serving[1]

    def _made(self, linear: nn.Module, dtype: torch.dtype) -> Bank:
        lora_A, lora_B = self.lora_A.to(dtype), self.lora_B.to(dtype)
        if len(lora_A) < len(lora_B):
            lora_A = lora_A.repeat(len(lora_B), 1, 1)
        if self.lora_magnitude is None:
            return Bank(lora_A, lora_B, self.scale)
        factor_NO = factor(self.lora_magnitude, linear, self.lora_A, self.lora_B, self.scale)
        return Bank(lora_A, lora_B, self.scale, factor_NO)


class LinearExperts(LoraExperts):
    """y = W x + s sum_e g_e B_e A_e x (MoELoRA); with one expert plain LoRA, without a router."""

    def __init__(self, linear: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(linear, spec)
        self.rate = spec.dropout
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.recorder: Recorder | None = None
        self.compared = (ITSELF,)
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
        mode = Mode(self.rate if self.training else 0.0)
        bank = self.bank(linear, hidden_TI.dtype)
        if self.router is None:
            return plain_lora(linear, bank, hidden_TI, mode)
        routing = self.router(hidden_TI, length)
        sent = self.dispatcher.dispatch(hidden_TI, routing)
        adapted = adapt_linear(linear, bank, _pairs(sent, self.router), sent.hidden_nD, mode)
        if self.recorder is not None:
            self.recorder(routing, adapted.terms(self.compared), None)
        return self.dispatcher.combine(adapted.output_TO, sent)


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
        self.ranks = spec.experts_in(0, 1) * spec.rank
        self._few = FewTokens(capacity=1)
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.recorder: Recorder | None = None
        self.compared = tuple(name for name in block.inner if name in targets) or block.outer[:1]
        """Projections whose rank space is recorded: the outer one's only if it is alone."""
        self.router = Router(block.width, spec.experts_in(0, 1), spec)
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
        for experts in self.projections.values():
            cast(LoraExperts, experts).reset_parameters(generator)

    def state(self, dtype: torch.dtype) -> tuple[object, ...]:
        """Changes whenever what `banks` would give changes."""
        return (id(self), dtype, *((one.data_ptr(), one._version) for one in self._weights))

    def banks(self, block: FeedForward, dtype: torch.dtype) -> dict[str, Bank]:
        """The experts of every adapted linear."""
        if self.training:
            self._few.forget()  # Some optimizers change weights without leaving a trace on them.
        return {
            name: cast(LoraExperts, experts).bank(block.linears[name], dtype)
            for name, experts in self.projections.items()
        }

    def forward(self, block: FeedForward, hidden_TD: Tensor, length: int | None = None) -> Tensor:
        """The frozen `block` with its experts; `length` as in Router."""
        made = self._prepared(block, hidden_TD)
        if made is not None and made.router is not None:
            return adapt_few(block, made, hidden_TD, made.router.route(hidden_TD))
        routing = self.router(hidden_TD, length)
        sent = self.dispatcher.dispatch(hidden_TD, routing)
        pairs = _pairs(sent, self.router)
        if made is not None:
            return adapt_few(block, made, hidden_TD, pairs)
        mode = Mode(self.rate if self.training else 0.0, self.fused)
        banks = self.banks(block, hidden_TD.dtype)
        adapted = adapt_block(block, banks, pairs, sent.hidden_nD, mode)
        if self.recorder is not None:
            self.recorder(routing, adapted.terms(self.compared), None)
        return self.dispatcher.combine(adapted.output_TO, sent)

    @property
    def is_watched(self) -> bool:
        """Whether it trains or is asked what it does: a decoding step's short way does neither."""
        return self.training or self.recorder is not None

    def _prepared(self, block: FeedForward, hidden_TD: Tensor) -> Prepared | None:
        if self.is_watched or not isinstance(self.dispatcher, LocalTokenDispatcher):
            return None
        return self._few.prepared(block, [self], hidden_TD)


def _pairs(sent: Dispatched, router: Router) -> Pairs:
    return Pairs(sent.expert_nK, sent.gate_nK, router.weight.shape[0], router.has_voids)
