"""Stacked LoRA experts: one matmul pair and one mask instead of a loop over experts.

Shapes: T tokens, D model width, F feed-forward width, E experts, K top-k, R rank, I and O the
input and output size of one linear. Parameters are float32 and are cast to the activations' type.
"""

import math
from collections.abc import Collection
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from workers.layers.dispatch import Dispatched, LocalTokenDispatcher, TokenDispatcher
from workers.layers.feed_forward import FeedForward, linear_sizes
from workers.layers.router import Routing, TopKRouter
from workers.spec import AdapterSpec


class Adapted(NamedTuple):
    """What an adapted place gives, and what losses and statistics want to know of it."""

    output_TO: Tensor
    routing: Routing | None = None
    projected: tuple[Tensor, ...] = ()
    """A_e dropout(x) of every expert, [T, E, R], one for each routed projection."""


class LoraExperts(nn.Module):
    """E low-rank updates of one linear: lora_A [E, R, I], lora_B [E, O, R]."""

    def __init__(self, linear: nn.Module, spec: AdapterSpec) -> None:
        super().__init__()
        in_features, out_features = linear_sizes(linear) or (0, 0)
        experts, rank = spec.num_experts, spec.rank
        self.scale = spec.scale
        self.dropout = nn.Dropout(spec.dropout)
        self.lora_A = nn.Parameter(torch.zeros(experts, rank, in_features, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(experts, out_features, rank, dtype=torch.float32))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """A: Kaiming-uniform(sqrt 5) for each expert; B: zero."""
        for lora_A_RI in self.lora_A:
            nn.init.kaiming_uniform_(lora_A_RI, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B)

    def project(self, hidden: Tensor) -> Tensor:
        """A_e dropout(x) for all experts at once: [..., I] to [..., E, R]."""
        stacked_SI = self.lora_A.flatten(0, 1).to(hidden.dtype)
        rank_space = nn.functional.linear(self.dropout(hidden), stacked_SI)
        return rank_space.view(*hidden.shape[:-1], *self.lora_A.shape[:2])

    def expand(self, rank_space: Tensor) -> Tensor:
        """s * sum_e B_e z_e: [..., E, R] to [..., O]. Callers add the frozen part in place: one
        pass over the layer's largest tensors less."""
        stacked_SO = self.lora_B.transpose(1, 2).flatten(0, 1).to(rank_space.dtype)
        return (rank_space * self.scale).flatten(-2) @ stacked_SO


class LinearExperts(LoraExperts):
    """y = W x + s sum_e g_e B_e A_e x (MoELoRA); with one expert plain LoRA, without a router."""

    def __init__(self, linear: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(linear, spec)
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.router: TopKRouter | None = None
        if spec.num_experts > 1:
            width = self.lora_A.shape[-1]
            self.router = TopKRouter(width, spec.num_experts, spec.top_k, spec.router_init_std)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise the router, then the experts."""
        if self.router is not None:
            self.router.reset_parameters(generator)
        super().reset_parameters(generator)

    def forward(self, linear: nn.Module, hidden_TI: Tensor) -> Adapted:
        """The frozen `linear` with its update."""
        frozen_TO = linear(hidden_TI)
        if self.router is None:
            return Adapted(self.expand(self.project(hidden_TI)).add_(frozen_TO))
        routing = self.router(hidden_TI)
        sent = self.dispatcher.dispatch(hidden_TI, routing)
        rank_space_TER = self.project(sent.hidden_nD)
        gate_TK = sent.gate_nK.to(rank_space_TER.dtype)
        weight_TE = torch.zeros_like(rank_space_TER[..., 0]).scatter(1, sent.expert_nK, gate_TK)
        update_TO = self.expand(rank_space_TER * weight_TE.unsqueeze(-1))
        output_TO = self.dispatcher.combine(update_TO, sent).add_(frozen_TO)
        return Adapted(output_TO, routing, (rank_space_TER,))


class BlockExperts(nn.Module):
    """A feed-forward block as E experts that share its frozen weights (MixLoRA).

    h_e = combine(W_i x + s B_i,e A_i,e x); y = W2 (sum_e g_e h_e) + sum_e g_e s B2_e A2_e h_e.
    By linearity the frozen outer linear W2 runs once for each token, not once for each choice.
    """

    def __init__(self, block: FeedForward, spec: AdapterSpec, targets: Collection[str]) -> None:
        super().__init__()
        self.dispatcher: TokenDispatcher = LocalTokenDispatcher()
        self.router = TopKRouter(block.width, spec.num_experts, spec.top_k, spec.router_init_std)
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

    def forward(self, block: FeedForward, hidden_TD: Tensor) -> Adapted:
        """The frozen `block` with its experts."""
        routing = self.router(hidden_TD)
        sent = self.dispatcher.dispatch(hidden_TD, routing)
        inner, projected = self._inner(block, sent)
        hidden_TKF = block.combine(*inner)
        output_TD, rank_space = self._outer(block, sent, hidden_TKF)
        output_TD = self.dispatcher.combine(block.leave(output_TD), sent)
        return Adapted(output_TD, routing, projected or rank_space)

    def _inner(
        self, block: FeedForward, sent: Dispatched
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The inner linears' outputs, [T, K, O] or [T, 1, O], and the adapted ones' rank space."""
        chosen_TKE1 = self._chosen(sent, sent.hidden_nD).unsqueeze(-1)
        outputs, projected = [], []
        for name, linear in block.inner.items():
            output_TKO = linear(sent.hidden_nD).unsqueeze(1)
            experts = self._experts(name)
            if experts is not None:
                rank_space_TER = experts.project(sent.hidden_nD)
                update_TKO = experts.expand(rank_space_TER.unsqueeze(1) * chosen_TKE1)
                output_TKO = update_TKO.add_(output_TKO)
                projected.append(rank_space_TER)
            outputs.append(output_TKO)
        return outputs, tuple(projected)

    def _outer(
        self, block: FeedForward, sent: Dispatched, hidden_TKF: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The block's output, and the outer linear's rank space if no inner one has any."""
        name, linear = block.outer
        gate_TK = sent.gate_nK.to(hidden_TKF.dtype)
        # Where no inner linear is adapted, K is 1 in `hidden_TKF`: all experts see one h.
        mix_TK = gate_TK if hidden_TKF.shape[1] > 1 else gate_TK.sum(1, keepdim=True)
        output_TD = linear(torch.einsum("tkf,tk->tf", hidden_TKF, mix_TK))
        experts = self._experts(name)
        if experts is None:
            return output_TD, ()
        rank_space_TKER = experts.project(hidden_TKF)
        weight_TKE = self._chosen(sent, gate_TK) * gate_TK.unsqueeze(-1)
        update_TD = experts.expand((rank_space_TKER * weight_TKE.unsqueeze(-1)).sum(1))
        rank_space = (rank_space_TKER[:, 0],) if rank_space_TKER.shape[1] == 1 else ()
        return update_TD.add_(output_TD), rank_space

    def _experts(self, name: str) -> LoraExperts | None:
        return cast(LoraExperts, self.projections[name]) if name in self.projections else None

    def _chosen(self, sent: Dispatched, like: Tensor) -> Tensor:
        """One where slot k of token t goes to expert e, [T, K, E]."""
        expert_E = torch.arange(self.router.weight.shape[0], device=like.device)
        return (sent.expert_nK.unsqueeze(-1) == expert_E).to(like.dtype)
