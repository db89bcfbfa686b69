"""The router: which experts each token is sent to, and with which weight.

Shapes: T tokens, D width, E experts, K slots, N experts of several routers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.config.routing import RoutingSpec
from workers.layers.ops.autocast import is_autocast


class Routing(NamedTuple):
    """One routing decision for T tokens.

    A slot whose expert is E is the **void**: the frozen block itself, without update, which counts
    with the slot's gate. A token that fills fewer than K slots has voids of gate 0 in the rest.
    """

    logits_TE: Tensor
    """Router logits as the softmax gets them (after the temperature), at least float32."""
    expert_TK: Tensor
    """Experts of the slots, most probable first; E is the void."""
    gate_TK: Tensor
    """Weights of the slots, at least float32. They sum to 1 over K, but for raw gates."""
    asked_TK: Tensor | None = None
    """Experts of the slots before some were found full; None where no expert has a capacity."""

    @property
    def probs_TE(self) -> Tensor:  # noqa: N802
        """Softmax of the logits over all experts."""
        return self.logits_TE.softmax(-1)

    @property
    def wanted_TK(self) -> Tensor:  # noqa: N802
        """Experts that were asked for, full or not: where their use is balanced, Switch counts
        before its capacity (arXiv 2101.03961, equation 5), else full experts look balanced."""
        return self.expert_TK if self.asked_TK is None else self.asked_TK


Sequences = int | Tensor | None
"""Which tokens are of one sequence: how many each has (int), or the number of each token's, in
order, [T]; None: all are of one."""


class RoutingDecision(NamedTuple):
    """What the routers of one place decided for their tokens, in the batch's order.

    Their experts follow one another in one numbering; higher numbers are the void.
    """

    routers: "tuple[Router | None, ...]"
    """None: rows without a router here are among the tokens, all of whose slots are void."""
    logits_TN: Tensor
    """As the softmax gets them; minus infinity at experts of others, and zeros may follow."""
    expert_TK: Tensor
    gate_TK: Tensor
    """Slots beyond a router's own have gate 0, whatever their expert is."""


RoutingObserver = Callable[[RoutingDecision], None]


class Router(nn.Module, ABC):
    """Softmax router without bias; its strategy is what a subclass selects.

    All that is trained, and saved, is `weight`. Residual gates add one void slot at the end.
    Nothing here waits for the device, and no shape depends on the data.
    """

    def __init__(self, dim: int, num_experts: int, spec: RoutingSpec) -> None:
        super().__init__()
        self.spec = spec
        self.slots = spec.slots(num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, dim, dtype=torch.float32))
        self.observer: RoutingObserver | None = None
        """Is told every decision; the same for all routers of a place."""

    @abstractmethod
    def select(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and experts of every token's slots, most probable first, [T, K] with K = `slots`;
        minus infinity and the void in slots that a token leaves empty."""

    def overflow(self, expert_TK: Tensor, sequences: Sequences) -> Tensor | None:
        """In training: True where an expert is full in a token's sequence, [T, K]; None without a
        capacity."""
        del expert_TK, sequences
        return None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weight from N(0, router_init_std)."""
        nn.init.normal_(self.weight, std=self.spec.router_init_std, generator=generator)

    def forward(self, hidden_TD: Tensor, sequences: Sequences = None) -> Routing:
        """Route T tokens, in float32 whatever the precision of `hidden_TD`; only a capacity asks
        for the `sequences`."""
        logits_TE = self._logits(hidden_TD)
        top_TK, expert_TK = self.select(logits_TE)
        gate_TK, asked_TK = self._gates(logits_TE, top_TK), None
        if self.training:
            full_TK = self.overflow(expert_TK, sequences)
            asked_TK = None if full_TK is None else expert_TK
            expert_TK, gate_TK = self._thin(expert_TK, gate_TK, full_TK)
        if self.spec.gate_form == "residual":
            expert_TK = functional.pad(expert_TK, (0, 1), value=self.void)
            gate_TK = torch.cat([gate_TK, 1 - gate_TK.sum(-1, keepdim=True)], dim=-1)
        if self.observer is not None:
            self.observer(RoutingDecision((self,), logits_TE, expert_TK, gate_TK))
        return Routing(logits_TE, expert_TK, gate_TK, asked_TK)

    @property
    def has_voids(self) -> bool:
        """Whether a slot may be void."""
        spec, void = self.spec, self.spec.strategy.void
        thinned = self.training and (void == "training" or spec.expert_dropout > 0)
        return void == "always" or spec.gate_form == "residual" or thinned

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self.training and bool(self.spec.router_jitter or self.spec.expert_dropout)

    @property
    def void(self) -> int:
        """The number that stands for no expert."""
        return self.weight.shape[0]

    def largest(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The `slots` largest logits and their experts, [T, K]."""
        top_TK, expert_TK = logits_TE.topk(self.slots, dim=-1)
        return top_TK, expert_TK

    def _logits(self, hidden_TD: Tensor) -> Tensor:
        precision = torch.promote_types(self.weight.dtype, torch.float32)
        hidden_TD, jitter = hidden_TD.to(precision), self.spec.router_jitter
        if self.training and jitter:
            hidden_TD = hidden_TD * (1 - jitter + 2 * jitter * torch.rand_like(hidden_TD))
        weight_ED = self.weight.to(precision)
        if is_autocast(hidden_TD):
            with torch.autocast(hidden_TD.device.type, enabled=False):
                logits_TE = functional.linear(hidden_TD, weight_ED)
        else:
            logits_TE = functional.linear(hidden_TD, weight_ED)
        temperature = self.spec.router_temperature
        return logits_TE if temperature == 1 else logits_TE / temperature

    def _gates(self, logits_TE: Tensor, top_TK: Tensor) -> Tensor:
        if self.spec.gate_form in ("renormalised", "equal"):
            # p_taken / sum(p_taken) is the softmax over the taken logits, and is never 0 / 0.
            gate_TK = top_TK.softmax(-1)
            return gate_TK if self.spec.gate_form == "renormalised" else _equal(top_TK, gate_TK)
        probs_TK = (top_TK - logits_TE.logsumexp(-1, keepdim=True)).exp()
        return probs_TK * self.spec.gate_scale

    def _thin(
        self, expert_TK: Tensor, gate_TK: Tensor, full_TK: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Send to the void what exceeds a capacity, and what expert dropout draws."""
        spec = self.spec
        if full_TK is not None:
            expert_TK = expert_TK.masked_fill(full_TK, self.void)
            if spec.gate_form == "raw":  # Gates of the other forms sum to 1 as they are.
                gate_TK = gate_TK.masked_fill(full_TK, 1.0)
        if spec.expert_dropout:
            dropped_TK = torch.rand_like(gate_TK) < spec.expert_dropout
            expert_TK = expert_TK.masked_fill(dropped_TK, self.void)
        return expert_TK, gate_TK


def level(top_TK: Tensor) -> Tensor:
    """The slots' logits as equal gates have them: zero, but minus infinity in an empty slot; what
    is not finite stays seen."""
    return (top_TK * 0).masked_fill(top_TK == -torch.inf, -torch.inf)


def _equal(top_TK: Tensor, gate_TK: Tensor) -> Tensor:
    """Equal gates, with the gradient of the renormalised ones `gate_TK`: they have none of their
    own, and the router would never learn (straight-through, arXiv 1308.3432; ReMix itself learns by
    several samples of each row, arXiv 2603.10160, which takes as many passes)."""
    equal_TK = level(top_TK.detach()).softmax(-1)
    return equal_TK + (gate_TK - gate_TK.detach()) if gate_TK.requires_grad else equal_TK


def build_router(dim: int, num_experts: int, spec: RoutingSpec) -> Router:
    """The router of the spec's strategy, as its table names the class."""
    module, _, name = spec.strategy.implementation.partition(":")
    strategy = cast("type[Router]", getattr(import_module(module), name))
    return strategy(dim, num_experts, spec)
