"""The most probable expert, which takes so many tokens of a sequence (Switch, arXiv 2101.03961).

Shapes: T tokens, E experts.
"""

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.routing.base import Router, Sequences


class Switch(Router):
    """K = 1.

    The capacity has no place in inference: which tokens overflow depends on how many came before
    them in the same pass, so an answer would change with the split into prefill and decode and with
    what it is batched with.
    """

    def select(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logit."""
        return self.largest(logits_TE)

    def overflow(self, expert_TK: Tensor, sequences: Sequences) -> Tensor:
        """True for tokens behind the first `expert_capacity` of their expert and sequence."""
        expert_E = torch.arange(self.void, device=expert_TK.device)
        chosen_TE = expert_TK == expert_E
        count_TE = chosen_TE.cumsum(0)
        before_TE = functional.pad(count_TE, (0, 0, 1, 0))[_first(sequences, expert_TK)]
        place_T1 = ((count_TE - before_TE) * chosen_TE).sum(-1, keepdim=True)
        return place_T1 > self.spec.expert_capacity


def _first(sequences: Sequences, expert_TK: Tensor) -> Tensor:
    """Where each token's sequence begins, [T]."""
    token_T = torch.arange(len(expert_TK), device=expert_TK.device)
    if sequences is None:
        return torch.zeros_like(token_T)
    if isinstance(sequences, int):
        return token_T - token_T % sequences
    return torch.searchsorted(sequences, sequences)
