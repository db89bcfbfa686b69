"""Block experts for a handful of tokens without gradients: a decoding step.

The sums are the plain mixture's; what counts here is the number of operations, each of which costs
more than its arithmetic. So what can be made before is made once: both A of the inner linears in
one matrix, B transposed, the scale inside of A, several adapters' experts in one bank.
Shapes: T tokens, K slots, N experts, R rank, S = N * R, I inner linears, D model width, F the
block's inner width, O the size of an inner linear's output.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.bank import Bank, join
from workers.layers.feed_forward import FeedForward
from workers.layers.joint import JointRouter, join_routers
from workers.layers.mixture import PLAIN_PRODUCTS
from workers.layers.pairs import Pairs
from workers.layers.pullback import combine
from workers.layers.router import Router

GATHERED_SHARE = 3
"""Rows of a matrix for each that is needed, from which on copying these is cheaper than a product
with all (measured as tests/benchmarks/decode.py does, with eight adapters)."""
Banks = Mapping[str, Bank]
"""The experts of a block's linears, by name."""


class Source(Protocol):
    """Block experts, as far as they are of interest here."""

    ranks: int
    """Experts times rank."""
    router: Router

    def state(self, dtype: torch.dtype) -> tuple[object, ...]:
        """Changes whenever what `banks` would give changes."""

    def banks(self, block: FeedForward, dtype: torch.dtype) -> Banks:
        """The experts of every adapted linear; without gradients, ready to serve."""


Members = Sequence[Source | None]
"""Whose tokens a step has, each once; None is the bare base."""


class Prepared(NamedTuple):
    """The experts of a block, ready for a decoding step."""

    router: JointRouter | None
    """None where the adapters' strategies need their own."""
    inner_A_SD: Tensor
    """A of all inner linears, [I * S, D]."""
    inner_B_SO: Tensor
    """B of all inner linears, transposed, [I * S, O]."""
    outer_A_SF: Tensor | None
    outer_B_SD: Tensor | None
    place_I11R: Tensor
    """Where the first expert's ranks lie in the inner linears' S, [I, 1, 1, R]."""
    start_B: Tensor
    """Where sums of R rows each begin, for as many as a step may have."""


class FewTokens:
    """Prepared experts of the sets of adapters that met last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._made: OrderedDict[object, tuple[Members, Prepared | None]] = OrderedDict()

    def prepared(self, block: FeedForward, members: Members, hidden_TD: Tensor) -> Prepared | None:
        """The experts of all `members` in one bank, to serve these tokens; None where the general
        way is needed or faster."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        layers = [layer for layer in members if layer is not None]
        slots = max(layer.router.slots for layer in layers)
        products = len(hidden_TD) * slots * sum(layer.ranks for layer in layers)
        if not 0 < products <= PLAIN_PRODUCTS or torch.is_autocast_enabled(hidden_TD.device.type):
            return None
        dtype = hidden_TD.dtype
        key = tuple(None if layer is None else layer.state(dtype) for layer in members)
        if key not in self._made:
            # The layers are held, so that no other can take their identity.
            self._made[key] = members, _prepare(block, members, dtype)
            if len(self._made) > self._capacity:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key][1]

    def forget(self) -> None:
        """Hold nothing any more."""
        self._made.clear()


def _prepare(block: FeedForward, members: Members, dtype: torch.dtype) -> Prepared | None:
    parts = [layer.banks(block, dtype) for layer in members if layer is not None]
    same = all(set(part) == set(parts[0]) for part in parts)
    plain = all(bank.factor_NO is None for part in parts for bank in part.values())
    if not same or not plain or not all(name in parts[0] for name in block.inner):
        return None
    banks = {name: join([part[name] for part in parts]) for name in parts[0]}
    inner, outer = [banks[name] for name in block.inner], banks.get(block.outer[0])
    experts, _, rank = inner[0].lora_B_NOR.shape
    place = partial(torch.arange, device=inner[0].lora_B_NOR.device)
    first_I = place(len(inner)) * experts * rank
    ranks = sum(layer.ranks for layer in members if layer is not None)
    pairs = 2 * PLAIN_PRODUCTS // ranks  # Twice: residual gates add a slot to every token's.
    return Prepared(
        join_routers([None if layer is None else layer.router for layer in members]),
        torch.cat([bank.stacked_A_SI for bank in inner]),
        torch.cat([bank.stacked_B_SO for bank in inner]),
        None if outer is None else outer.stacked_A_SI,
        None if outer is None else outer.stacked_B_SO,
        first_I.view(-1, 1, 1, 1) + place(rank),
        place(len(inner) * pairs) * rank,
    )


def few_tokens(block: FeedForward, made: Prepared, hidden_TD: Tensor, pairs: Pairs) -> Tensor:
    """The block with its experts, up to what it does behind its outer linear: [T, D]."""
    tokens, slots = pairs.expert_TK.shape
    inner, *_, rank = made.place_I11R.shape
    row_ITKR = (pairs.expert_TK * rank).unsqueeze(2) + made.place_I11R
    rank_space_ITX = _products(made.inner_A_SD, row_ITKR.flatten(2), hidden_TD)
    if pairs.real_TK1 is not None:
        rank_space_ITX.view_as(row_ITKR).mul_(pairs.real_TK1)
    update_BO = _rows_sum(
        row_ITKR, rank_space_ITX, made.inner_B_SO, made.start_B[: inner * tokens * slots]
    )
    update_ITKO = update_BO.view(inner, tokens, slots, -1)
    frozen = (linear(hidden_TD).unsqueeze(1) for linear in block.inner.values())
    hidden_TKF = combine(block, [update_ITKO[i].add_(one) for i, one in enumerate(frozen)])
    gate_TK = pairs.gate_TK.to(hidden_TD.dtype)
    output_TD: Tensor = block.outer[1](torch.bmm(gate_TK.unsqueeze(1), hidden_TKF).squeeze(1))
    if made.outer_A_SF is None or made.outer_B_SD is None:
        return output_TD
    row_TKR = row_ITKR[0]
    outer_TKR = _products(made.outer_A_SF, row_TKR, hidden_TKF)
    outer_TKR = pairs.masked(outer_TKR).mul_(gate_TK.unsqueeze(2))
    return output_TD.add_(
        _rows_sum(row_TKR, outer_TKR, made.outer_B_SD, made.start_B[: tokens * slots : slots])
    )


def _products(matrix_SI: Tensor, row: Tensor, input_I: Tensor) -> Tensor:
    """Each input [..., I] times its own rows [..., X] of a matrix: [..., X]. Where these are few of
    many, as with several adapters, they are copied, and the others not even read."""
    if row.numel() * GATHERED_SHARE < len(matrix_SI):
        own_XI = matrix_SI.index_select(0, row.flatten()).view(*row.shape, -1)
        return (own_XI @ input_I.unsqueeze(-1)).squeeze(-1)
    all_S = functional.linear(input_I, matrix_SI)
    return all_S.expand(*row.shape[:-1], -1).gather(-1, row)


def _rows_sum(row: Tensor, weight: Tensor, matrix_SO: Tensor, start_B: Tensor) -> Tensor:
    """Sums of weighed rows of `matrix`, each from a start to the next: reads these rows only,
    without a copy."""
    flat, weight = row.flatten(), weight.flatten()
    return functional.embedding_bag(flat, matrix_SO, start_B, mode="sum", per_sample_weights=weight)
