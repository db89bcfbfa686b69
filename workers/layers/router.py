"""The router: which experts each token is sent to, and with which weight.

Shapes: T tokens, D width, E experts, K top-k.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """One routing decision for T tokens."""

    logits_TE: Tensor
    """Router logits, at least float32."""
    probs_TE: Tensor
    """Softmax of the logits over all experts."""
    expert_TK: Tensor
    """Indices of the chosen experts, most probable first."""
    gate_TK: Tensor
    """Weights of the chosen experts; they sum to 1 over K."""


class TopKRouter(nn.Module):
    """Softmax router without bias; the gates are renormalised over the top K (arXiv 2404.15159)."""

    def __init__(self, dim: int, num_experts: int, top_k: int, init_std: float) -> None:
        super().__init__()
        self.top_k = top_k
        self.init_std = init_std
        self.weight = nn.Parameter(torch.zeros(num_experts, dim, dtype=torch.float32))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weight from N(0, init_std)."""
        nn.init.normal_(self.weight, std=self.init_std, generator=generator)

    def forward(self, hidden_TD: Tensor) -> Routing:
        """Route T tokens, in float32 whatever the precision of `hidden_TD`."""
        precision = torch.promote_types(self.weight.dtype, torch.float32)
        logits_TE = nn.functional.linear(hidden_TD.to(precision), self.weight.to(precision))
        top_TK, expert_TK = logits_TE.topk(self.top_k, dim=-1)
        # p_topk / sum(p_topk) is the softmax over the chosen logits, and is never 0 / 0.
        return Routing(logits_TE, logits_TE.softmax(-1), expert_TK, top_TK.softmax(-1))
