"""Plain LoRA of several adapters on one linear, without gradients: every token with its own.

Each is one expert of a joint bank. All A lie in one matrix and all B in another; what is of other
adapters than a token's own counts zero, which a B that is not finite would not make of it: the
general way is for that.
Shapes: T tokens, M members (adapters, or the bare base), N experts, R rank, S = N * R, I and O the
linear's input and output size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.layers.expert_bank import DENSE_RANKS, ExpertBank, join
from workers.layers.inference.frozen_linear import frozen_product
from workers.layers.mixture.select import PLAIN_PRODUCTS


class PlainLoras(NamedTuple):
    """The members' updates, ready to serve."""

    lora_A_SI: Tensor
    lora_B_SO: Tensor
    other_MS: Tensor
    """True where a rank is not the member's own."""

    def adapted(self, linear: nn.Module, hidden_TI: Tensor, member_T: Tensor) -> Tensor | None:
        """The linear with every token's own update, [T, O]; `member_T` says whose a token is. None
        where the general way is faster."""
        ranks = len(self.lora_A_SI)
        if ranks > DENSE_RANKS and len(hidden_TI) * ranks > PLAIN_PRODUCTS:
            return None
        all_TS = functional.linear(hidden_TI, self.lora_A_SI)
        own_TS = all_TS.masked_fill_(self.other_MS[member_T], 0)
        return frozen_product(linear, hidden_TI).addmm(own_TS, self.lora_B_SO)


def join_plain(banks: Sequence[ExpertBank | None]) -> PlainLoras | None:
    """The members' banks of one expert each, in their order; None stands for the bare base. Nothing
    where the general way is needed."""
    there = [bank for bank in banks if bank is not None]
    if any(bank.factor_NO is not None or bank.scale != 1 for bank in there):
        return None
    bank = join(there, void=False)
    if not bank.lora_B_NOR.isfinite().all():  # a GPU is waited for once
        return None
    experts, _, rank = bank.lora_B_NOR.shape
    own = iter(range(experts))
    other_MN = bank.lora_A_NRI.new_ones(len(banks), experts, dtype=torch.bool)
    for member, one in enumerate(banks):
        if one is not None:
            other_MN[member, next(own)] = False
    return PlainLoras(bank.stacked_A_SI, bank.stacked_B_SO, other_MN.repeat_interleave(rank, 1))
