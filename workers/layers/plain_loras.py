"""Plain LoRA of several adapters on one linear, without gradients: every token with its own.

All A lie in one matrix and all B in another; what is of other adapters than a token's own counts
zero. Both are made once, and serve until another set of adapters meets.
Shapes: T tokens, M members (adapters, or the bare base), R rank, S the sum of their ranks, I and O
the linear's input and output size.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.layers.bank import DENSE_RANKS, Bank
from workers.layers.experts import LinearExperts
from workers.layers.frozen import frozen_product
from workers.layers.mixture import PLAIN_PRODUCTS


class _Together(NamedTuple):
    banks: Sequence[Bank | None]
    """Held, so that no other can take their identity."""
    lora_A_SI: Tensor
    lora_B_SO: Tensor
    own_MS: Tensor
    """One where a rank is the member's own."""


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
        if made is None:
            return None
        ranks = len(made.lora_A_SI)
        if ranks > DENSE_RANKS and len(hidden_TI) * ranks > PLAIN_PRODUCTS:
            return None
        own_TS = functional.linear(hidden_TI, made.lora_A_SI).mul_(made.own_MS[member_T])
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


def _put_together(banks: Sequence[Bank | None]) -> _Together:
    there = [bank for bank in banks if bank is not None]
    lora_A_SI = torch.cat([bank.stacked_A_SI for bank in there])
    own_MS = lora_A_SI.new_zeros(len(banks), len(lora_A_SI))
    first = 0
    for member, bank in enumerate(banks):
        if bank is not None:
            own_MS[member, first : first + len(bank.stacked_A_SI)] = 1
            first += len(bank.stacked_A_SI)
    return _Together(banks, lora_A_SI, torch.cat([bank.stacked_B_SO for bank in there]), own_MS)
