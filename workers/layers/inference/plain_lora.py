"""Plain LoRA of several adapters on one linear, without gradients: every token with its own.

All A lie in one matrix and all B in another; what is of other adapters than a token's own counts
zero, which a B that is not finite would not make of it: the general way is for that. Both are made
once, and serve until another set of adapters meets.
Shapes: T tokens, M members (adapters, or the bare base), R rank, S the sum of their ranks, I and O
the linear's input and output size.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.layers.expert_bank import DENSE_RANKS, ExpertBank
from workers.layers.experts import LinearExperts
from workers.layers.inference.frozen_linear import frozen_product
from workers.layers.mixture.select import PLAIN_PRODUCTS


class _Together(NamedTuple):
    banks: Sequence[ExpertBank | None]
    """Held, so that no other can take their identity."""
    lora_A_SI: Tensor
    lora_B_SO: Tensor
    other_MS: Tensor
    """True where a rank is not the member's own."""
    finite: bool
    """Whether B is."""


class PlainLoras:
    """What the sets of adapters that met last need on one linear."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._made: OrderedDict[tuple[int, ...], _Together] = OrderedDict()

    def adapted(
        self,
        linear: nn.Module,
        members: Sequence[LinearExperts | None],
        hidden_TI: Tensor,
        member_T: Tensor,
    ) -> Tensor | None:
        """The linear with every token's own update, [T, O]; `member_T` says whose a token is. None
        where the general way is needed or faster."""
        made = self._together(linear, members, hidden_TI)
        if made is None or not made.finite:
            return None
        ranks = len(made.lora_A_SI)
        if ranks > DENSE_RANKS and len(hidden_TI) * ranks > PLAIN_PRODUCTS:
            return None
        all_TS = functional.linear(hidden_TI, made.lora_A_SI)
        own_TS = all_TS.masked_fill_(made.other_MS[member_T], 0)
        frozen_TO = frozen_product(linear, hidden_TI)
        return frozen_TO.addmm(own_TS, made.lora_B_SO)

    def forget(self) -> None:
        """Hold nothing any more."""
        self._made.clear()

    def _together(
        self, linear: nn.Module, members: Sequence[LinearExperts | None], hidden_TI: Tensor
    ) -> _Together | None:
        watched = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if watched or torch.is_autocast_enabled(hidden_TI.device.type):
            return None
        if any(one is not None and (one.router is not None or one.training) for one in members):
            return None
        dtype = hidden_TI.dtype
        banks = [None if one is None else one.bank(linear, dtype) for one in members]
        if any(one is not None and (one.factor_NO is not None or one.scale != 1) for one in banks):
            return None
        key = tuple(map(id, banks))
        if key not in self._made:
            self._made[key] = _put_together(banks)
            if len(self._made) > self._capacity:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]


def _put_together(banks: Sequence[ExpertBank | None]) -> _Together:
    there = [bank for bank in banks if bank is not None]
    lora_A_SI = torch.cat([bank.stacked_A_SI for bank in there])
    lora_B_SO = torch.cat([bank.stacked_B_SO for bank in there])
    other_MS = lora_A_SI.new_ones(len(banks), len(lora_A_SI), dtype=torch.bool)
    first = 0
    for member, bank in enumerate(banks):
        if bank is not None:
            other_MS[member, first : first + len(bank.stacked_A_SI)] = False
            first += len(bank.stacked_A_SI)
    finite = bool(lora_B_SO.isfinite().all())  # a GPU is waited for once
    return _Together(banks, lora_A_SI, lora_B_SO, other_MS, finite)
