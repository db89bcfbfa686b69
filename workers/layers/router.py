"""The router: which experts each token is sent to, and with which weight.

Shapes: T tokens, D width, E experts, K slots, N experts of several routers, B sequences, S tokens
of a sequence.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.config.adapter import AdapterSpec


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

    @property
    def probs_TE(self) -> Tensor:  # noqa: N802
        """Softmax of the logits over all experts."""
        return self.logits_TE.softmax(-1)


class Choice(NamedTuple):
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


Witness = Callable[[Choice], None]


class Router(nn.Module):
    """Softmax router without bias, with the strategies of AdapterSpec.

    top_k (arXiv 2404.15159): the K most probable experts. top_p ("dynamic"): experts by descending
    probability, up to and with the one that lifts their sum above top_p; K = E. switch
    (arXiv 2101.03961): the most probable one; K = 1. Residual gates add one void slot at the end.
    Nothing here waits for the device, and no shape depends on the data.
    """

    def __init__(self, dim: int, num_experts: int, spec: AdapterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.slots = {"top_k": spec.top_k, "top_p": num_experts, "switch": 1}[spec.routing]
        self.weight = nn.Parameter(torch.zeros(num_experts, dim, dtype=torch.float32))
        self.witness: Witness | None = None
        """Is told every decision; the same for all routers of a place."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weight from N(0, router_init_std)."""
        nn.init.normal_(self.weight, std=self.spec.router_init_std, generator=generator)

    def forward(self, hidden_TD: Tensor, length: int | None = None) -> Routing:
        """Route T tokens, in float32 whatever the precision of `hidden_TD`.

        `length` is the number of tokens of one sequence, T = B * length (None: all T are one);
        only switch in training asks for it. Its capacity has no place in inference: which tokens
        overflow depends on how many came before them in the same pass, so an answer would change
        with the split into prefill and decode and with what it is batched with.
        """
        logits_TE = self._logits(hidden_TD)
        expert_TK, gate_TK = self._choose(logits_TE)
        if self.training:
            expert_TK, gate_TK = self._thin(expert_TK, gate_TK, length)
        if self.spec.gate_form == "residual":
            expert_TK = functional.pad(expert_TK, (0, 1), value=self._void)
            gate_TK = torch.cat([gate_TK, 1 - gate_TK.sum(-1, keepdim=True)], dim=-1)
        if self.witness is not None:
            self.witness(Choice((self,), logits_TE, expert_TK, gate_TK))
        return Routing(logits_TE, expert_TK, gate_TK)

    @property
    def has_voids(self) -> bool:
        """Whether a slot may be void."""
        spec = self.spec
        thinned = self.training and (spec.routing == "switch" or spec.expert_dropout > 0)
        return spec.routing == "top_p" or spec.gate_form == "residual" or thinned

    @property
    def _void(self) -> int:
        return self.weight.shape[0]

    def _logits(self, hidden_TD: Tensor) -> Tensor:
        precision = torch.promote_types(self.weight.dtype, torch.float32)
        hidden_TD, jitter = hidden_TD.to(precision), self.spec.router_jitter
        if self.training and jitter:
            hidden_TD = hidden_TD * (1 - jitter + 2 * jitter * torch.rand_like(hidden_TD))
        weight_ED = self.weight.to(precision)
        if torch.is_autocast_enabled(hidden_TD.device.type):
            with torch.autocast(hidden_TD.device.type, enabled=False):
                logits_TE = functional.linear(hidden_TD, weight_ED)
        else:
            logits_TE = functional.linear(hidden_TD, weight_ED)
        temperature = self.spec.router_temperature
        return logits_TE if temperature == 1 else logits_TE / temperature

    def _choose(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and gates by the strategy alone."""
        top_TK, expert_TK = logits_TE.topk(self.slots, dim=-1)
        if self.spec.routing == "top_p":
            # Behind the slot that crosses top_p none is taken; where none crosses, all are.
            sum_TK = top_TK.softmax(-1).cumsum(-1)
            beyond_TK = functional.pad(sum_TK[:, :-1], (1, 0)) > self.spec.top_p
            top_TK = top_TK.masked_fill(beyond_TK, -torch.inf)
            expert_TK = expert_TK.masked_fill(beyond_TK, self._void)
        if self.spec.gate_form == "renormalised":
            # p_taken / sum(p_taken) is the softmax over the taken logits, and is never 0 / 0.
            return expert_TK, top_TK.softmax(-1)
        probs_TK = (top_TK - logits_TE.logsumexp(-1, keepdim=True)).exp()
        return expert_TK, probs_TK * self.spec.gate_scale

    def _thin(
        self, expert_TK: Tensor, gate_TK: Tensor, length: int | None
    ) -> tuple[Tensor, Tensor]:
        """Send to the void what exceeds a capacity, and what expert dropout draws."""
        spec = self.spec
        if spec.routing == "switch":
            full_TK = self._overflow(expert_TK, length or max(len(expert_TK), 1))
            expert_TK = expert_TK.masked_fill(full_TK, self._void)
            if spec.gate_form == "raw":  # Gates of the other forms sum to 1 as they are.
                gate_TK = gate_TK.masked_fill(full_TK, 1.0)
        if spec.expert_dropout:
            dropped_TK = torch.rand_like(gate_TK) < spec.expert_dropout
            expert_TK = expert_TK.masked_fill(dropped_TK, self._void)
        return expert_TK, gate_TK

    def _overflow(self, expert_T1: Tensor, length: int) -> Tensor:
        """True for tokens behind the first `expert_capacity` of their expert and sequence."""
        expert_E = torch.arange(self._void, device=expert_T1.device)
        chosen_BSE = (expert_T1 == expert_E).view(-1, length, self._void)
        place_BSE = chosen_BSE.cumsum(1) * chosen_BSE
        return place_BSE.sum(-1).view(-1, 1) > self.spec.expert_capacity
