"""As many experts as make up a probability ("dynamic", arXiv 2403.07652).

Shapes: T tokens, E experts, K slots.
"""

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.routing.base import Router


class TopP(Router):
    """Experts by descending probability, up to and with the one that lifts their sum above `top_p`;
    K = E, and what a token does not take is void."""

    def select(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Behind the slot that crosses top_p none is taken; where none crosses, all are."""
        top_TK, expert_TK = self.largest(logits_TE)
        sum_TK = top_TK.softmax(-1).cumsum(-1)
        beyond_TK = functional.pad(sum_TK[:, :-1], (1, 0)) > self.spec.top_p
        top_TK = top_TK.masked_fill(beyond_TK, -torch.inf)
        return top_TK, expert_TK.masked_fill(beyond_TK, self.void)
