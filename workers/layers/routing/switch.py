"""The most probable expert, which takes so many tokens of a sequence (Switch, arXiv 2101.03961).

Shapes: T tokens, E experts, B sequences, S tokens of a sequence.
"""

import torch
from torch import Tensor

from workers.layers.routing.base import Router


class Switch(Router):
    """K = 1.

    The capacity has no place in inference: which tokens overflow depends on how many came before
    them in the same pass, so an answer would change with the split into prefill and decode and with
    what it is batched with.
    """

    def select(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logit."""
        return self.largest(logits_TE)

    def overflow(self, expert_TK: Tensor, length: int) -> Tensor:
        """True for tokens behind the first `expert_capacity` of their expert and sequence."""
        expert_E = torch.arange(self.void, device=expert_TK.device)
        chosen_BSE = (expert_TK == expert_E).view(-1, length, self.void)
        place_BSE = chosen_BSE.cumsum(1) * chosen_BSE
        return place_BSE.sum(-1).view(-1, 1) > self.spec.expert_capacity
