"""Block experts for a handful of tokens without gradients: a decoding step.

The sums are the plain mixture's; what counts here is the number of operations, each of which costs
more than its arithmetic. So what can be made before is made once: both A of the inner linears in
one matrix, B transposed, the scale inside of A, several adapters' experts in one bank.
Shapes: T tokens, K slots, N experts, R rank, S = N * R, I inner linears, D model width, F the
block's inner width, O the size of an inner linear's output.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.bank import Bank, join
from workers.layers.feed_forward import FeedForward
from workers.layers.mixture import PLAIN_PRODUCTS

Banks = Mapping[str, Bank]
"""The experts of a block's linears, by name."""


class Source(Protocol):
    """Block experts, as far as they are of interest here."""

    ranks: int
    """Experts times rank."""

    def state(self, dtype: torch.dtype) -> tuple[object, ...]:
        """Changes whenever what `banks` would give changes."""

    def banks(self, block: FeedForward, dtype: torch.dtype) -> Banks:
        """The experts of every adapted linear; without gradients, ready to serve."""


class Prepared(NamedTuple):
    """The experts of a block, ready for a decoding step."""

    experts: int
    inner_A_SD: Tensor
    """A of all inner linears, [I * S, D]."""
    inner_B_ISO: Tensor
    outer_A_SF: Tensor | None
    outer_B_SD: Tensor | None


class FewTokens:
    """Prepared experts of the sets of adapters that met last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._made: OrderedDict[object, tuple[Sequence[Source], Prepared | None]] = OrderedDict()

    def prepared(
        self, block: FeedForward, layers: Sequence[Source], dtype: torch.dtype, pairs: int
    ) -> Prepared | None:
        """The experts of all `layers` in one bank, for so many (token, expert) pairs; None where
        the general way is needed or faster."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if not 0 < pairs * sum(layer.ranks for layer in layers) <= PLAIN_PRODUCTS:
            return None
        key = tuple(layer.state(dtype) for layer in layers)
        if key not in self._made:
            # The layers are held, so that no other can take their identity.
            self._made[key] = layers, _prepare(block, layers, dtype)
            if len(self._made) > self._capacity:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key][1]

    def forget(self) -> None:
        """Hold nothing any more."""
        self._made.clear()


def _prepare(block: FeedForward, layers: Sequence[Source], dtype: torch.dtype) -> Prepared | None:
    parts = [layer.banks(block, dtype) for layer in layers]
    same = all(set(part) == set(parts[0]) for part in parts)
    plain = all(bank.factor_NO is None for part in parts for bank in part.values())
    if not same or not plain or not all(name in parts[0] for name in block.inner):
        return None
    banks = {name: join([part[name] for part in parts]) for name in parts[0]}
    inner, outer = [banks[name] for name in block.inner], banks.get(block.outer[0])
    return Prepared(
        len(inner[0].lora_B_NOR),
        torch.cat([bank.stacked_A_SI for bank in inner]),
        torch.stack([bank.stacked_B_SO for bank in inner]),
        None if outer is None else outer.stacked_A_SI,
        None if outer is None else outer.stacked_B_SO,
    )


def few_tokens(
    block: FeedForward, made: Prepared, hidden_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor
) -> Tensor:
    """The block with its experts, up to what it does behind its outer linear: [T, D].

    An expert of N or above is void.
    """
    tokens, slots = expert_TK.shape
    gate_TK = gate_TK.to(hidden_TD.dtype)
    # Voids fall into a column of their own, which nobody reads.
    all_TKN = hidden_TD.new_zeros(tokens, slots, made.experts + 1)
    chosen_TKN = all_TKN.scatter_(2, expert_TK.unsqueeze(2), 1)[..., :-1]
    rank_space = functional.linear(hidden_TD, made.inner_A_SD)
    rank_space = rank_space.view(tokens, 1, len(block.inner), made.experts, -1).permute(
        2, 0, 1, 3, 4
    )
    masked_IPS = (rank_space * chosen_TKN.unsqueeze(-1)).flatten(3).flatten(1, 2)
    update_ITKO = torch.bmm(masked_IPS, made.inner_B_ISO).view(len(masked_IPS), tokens, slots, -1)
    frozen = (linear(hidden_TD).unsqueeze(1) for linear in block.inner.values())
    hidden_TKF = block.combine(*(update_ITKO[i].add_(one) for i, one in enumerate(frozen)))
    weighed_TKF = hidden_TKF.mul_(gate_TK.unsqueeze(2))
    output_TD: Tensor = block.outer[1](weighed_TKF.sum(1))
    if made.outer_A_SF is None or made.outer_B_SD is None:
        return output_TD
    outer_TKS = functional.linear(weighed_TKF, made.outer_A_SF)
    outer_TKNR = outer_TKS.view(tokens, slots, made.experts, -1)
    outer_TS = (outer_TKNR * chosen_TKN.unsqueeze(3)).sum(1).flatten(1)
    return output_TD.addmm(outer_TS, made.outer_B_SD)
