"""A strategy as a contributor would add it: one class, and its entry in the table."""

import math

import torch
from torch import Tensor

from workers.config.routing import Strategy
from workers.layers.routing.base import Router

NAME = "near_best"
ENTRY = Strategy(
    summary="at most top_k experts, each at least top_p times as probable as the best",
    implementation="tests.workers.layers.routing.toy_strategy:NearBest",
    fields=("top_k", "top_p"),
    slots="top_k",
    void="always",
)


class NearBest(Router):
    """Experts that are not much less probable than the best one."""

    def select(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        top_TK, expert_TK = self.largest(logits_TE)
        far_TK = top_TK < top_TK[:, :1] + math.log(self.spec.top_p)
        return top_TK.masked_fill(far_TK, -torch.inf), expert_TK.masked_fill(far_TK, self.void)
