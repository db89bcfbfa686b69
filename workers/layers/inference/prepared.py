"""Experts of a block, and plain LoRA of a linear, made ready to serve, without gradients.

What can be made before is made once: both A of the inner linears in one matrix, B transposed, the
scale inside of A, several adapters' experts in one bank.
Shapes: T tokens, N experts, R rank, S = N * R, I inner linears, D model width, F the block's inner
width, O the size of an inner linear's output.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from workers.layers.expert_bank import ExpertBank, join
from workers.layers.feed_forward import FeedForward
from workers.layers.inference.plain_lora import PlainLoras, join_plain
from workers.layers.joint_router import JointRouter, join_routers
from workers.layers.mixture.select import PLAIN_PRODUCTS
from workers.layers.ops.autocast import is_autocast
from workers.layers.routing.base import Router

Banks = Mapping[str, ExpertBank]
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


class PlainSource(Protocol):
    """Experts of a linear, as far as they are of interest here."""

    router: Router | None
    training: bool

    def state(self, dtype: torch.dtype) -> tuple[object, ...]:
        """Changes whenever what `bank` would give changes."""

    def bank(self, linear: nn.Module, dtype: torch.dtype) -> ExpertBank:
        """The experts; without gradients, ready to serve."""


Made = TypeVar("Made")
Members = Sequence[Source | None]
"""Whose tokens a step has, each once; None is the bare base."""


class Prepared(NamedTuple):
    """The experts of a block, ready to serve."""

    decode_tokens: int
    """Tokens up to which a pass is a decoding step."""
    inner: int
    experts: int
    """Their void among them, an expert of zeros, where tokens may have one."""
    rank: int
    router: JointRouter | None
    """None where the adapters' strategies need their own."""
    inner_A_SD: Tensor
    """A of all inner linears, [I * S, D]."""
    inner_B_SO: Tensor
    """B of all inner linears, transposed, [I * S, O]."""
    outer_A_SF: Tensor | None
    outer_B_SD: Tensor | None
    place_INR: Tensor
    """Where each expert's ranks lie in the inner linears' I * S."""
    start_B: Tensor
    """Where sums of R rows each begin, for as many as a step may have."""


class PreparedExperts:
    """What the sets of adapters that met last at one place need: made once, until another set meets
    or a weight changes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._made: OrderedDict[object, tuple[object, Any]] = OrderedDict()

    def of(self, block: FeedForward, members: Members, hidden_TD: Tensor) -> Prepared | None:
        """The experts of all `members` in one bank, to serve these tokens; None where the general
        way is needed or faster."""
        layers = [layer for layer in members if layer is not None]
        tokens, device = len(hidden_TD), hidden_TD.device.type
        beyond = (
            tokens > _decode_tokens(layers) and device != "cpu"
        )  # kernels have a way of their own
        if not tokens or beyond or not _serves(hidden_TD):
            return None
        dtype = hidden_TD.dtype
        return self._once(members, dtype, lambda: _prepare(block, members, dtype))

    def plain(
        self, linear: nn.Module, members: Sequence[PlainSource | None], hidden_TI: Tensor
    ) -> PlainLoras | None:
        """The plain LoRA of all `members` on a linear; None where the general way is needed."""
        layers = [layer for layer in members if layer is not None]
        routed = any(layer.router is not None or layer.training for layer in layers)
        if routed or not _serves(hidden_TI):
            return None
        dtype = hidden_TI.dtype
        return self._once(
            members,
            dtype,
            lambda: join_plain(
                [None if layer is None else layer.bank(linear, dtype) for layer in members]
            ),
        )

    def forget(self) -> None:
        """Hold nothing any more."""
        self._made.clear()

    def _once(
        self,
        members: Sequence[Source | PlainSource | None],
        dtype: torch.dtype,
        make: Callable[[], Made],
    ) -> Made:
        key = tuple([None if layer is None else layer.state(dtype) for layer in members])
        if key not in self._made:
            # The layers are held, so that no other can take their identity.
            self._made[key] = members, make()
            if len(self._made) > self._capacity:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        made: Made = self._made[key][1]
        return made


def _serves(hidden_TD: Tensor) -> bool:
    """Whether this is plain inference."""
    watched = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not watched and not is_autocast(hidden_TD)


def _prepare(block: FeedForward, members: Members, dtype: torch.dtype) -> Prepared | None:
    layers = [layer for layer in members if layer is not None]
    parts = [layer.banks(block, dtype) for layer in layers]
    same = all(set(part) == set(parts[0]) for part in parts)
    plain = all(bank.factor_NO is None for part in parts for bank in part.values())
    if not same or not plain or not all(name in parts[0] for name in block.inner):
        return None
    void = len(members) > 1 or layers[0].router.has_voids
    banks = {name: join([part[name] for part in parts], void) for name in parts[0]}
    inner, outer = [banks[name] for name in block.inner], banks.get(block.outer[0])
    experts, _, rank = inner[0].lora_B_NOR.shape
    place = partial(torch.arange, device=inner[0].lora_B_NOR.device)
    # Twice: residual gates add a slot to every token's.
    pairs = 2 * PLAIN_PRODUCTS // _ranks(layers)
    return Prepared(
        _decode_tokens(layers),
        len(inner),
        experts,
        rank,
        join_routers([None if layer is None else layer.router for layer in members]),
        torch.cat([bank.stacked_A_SI for bank in inner]),
        torch.cat([bank.stacked_B_SO for bank in inner]),
        None if outer is None else outer.stacked_A_SI,
        None if outer is None else outer.stacked_B_SO,
        place(len(inner) * experts * rank).view(len(inner), experts, rank),
        place(len(inner) * pairs) * rank,
    )


def _decode_tokens(layers: Sequence[Source]) -> int:
    slots = max(layer.router.slots for layer in layers)
    return PLAIN_PRODUCTS // (slots * _ranks(layers))


def _ranks(layers: Sequence[Source]) -> int:
    return sum(layer.ranks for layer in layers)
