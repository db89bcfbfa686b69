"""Which rows of the running batch belong to which adapter.

Shapes: B rows, S positions, T tokens of the batch (its leading dimensions flattened), D width.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from workers.config.base import InputError
from workers.layers.ops.random_state import mixed
from workers.layers.ops.transfer import onto
from workers.layers.routing.base import Sequences

Slot = str | None
"""Name of an adapter; None is the bare base."""


class TokenPart(NamedTuple):
    """One adapter's tokens in a batch where they follow one another."""

    slot: Slot
    tokens: int
    """How many."""
    seed: int
    """What its random numbers hang on in this pass."""
    sequence_t: Tensor
    """The number of each token's sequence."""


class TokenPartition:
    """The tokens of one batch by slot, for all adapted modules that see batches of this shape."""

    def __init__(self, of: "_Assignment", slots: Sequence[Slot], hidden: Tensor) -> None:
        """`slots` are those of the tokens of `hidden` [..., D]."""
        self.names, names, device = of.names, of.names, hidden.device
        self._seeds = of.seeds
        self.sequences = of.sequence_T
        """The number of each token's sequence, [T], where that is told."""
        self.origin_T = _origin(of.row_n, hidden)
        """Where each token lies in the whole batch, of which these are a part; None: all."""
        found: dict[Slot, list[int]] = {name: [] for name in names}
        for token, slot in enumerate(slots):
            found[slot].append(token)
        self.tokens = [_indices(found[name], device) for name in names]
        """For each name its tokens, in the batch's order."""
        self.place_T = torch.cat(self.tokens).argsort()
        """Where each token lies when the names' tokens follow one another."""
        self.name_T = _indices([names.index(slot) for slot in slots], device)
        """Whose each token is, as a place in the names."""

    def in_batch(self, token_t: Tensor) -> Tensor:
        """Where these tokens lie in the whole batch."""
        return token_t if self.origin_T is None else self.origin_T[token_t]

    def seeds(self, place: int) -> list[int | None]:
        """For each name what its random numbers at a place of the model hang on in this pass; None
        where they come from torch's state."""
        own = (self._seeds.get(name) for name in self.names)
        return [None if seed is None else mixed(seed, place) for seed in own]


@dataclass(frozen=True)
class _Assignment:
    slots: tuple[Slot, ...]
    """One for each row; a single name holds for all rows, however many there are."""
    recent: frozenset[Slot] = frozenset()
    """Names that count as well, whether they have a row or not."""
    drawn: tuple[Slot, ...] | None = None
    """Of a batch whose head sees some tokens only: one for each of these."""
    seeds: Mapping[Slot, int] = field(default_factory=dict)
    """Of several adapters in training: what each one's random numbers hang on in this pass."""
    sequence_T: Tensor | None = None
    """Of several adapters in training: the number of each token's sequence."""
    apart: Sequence[TokenPart] = ()
    """Of several adapters in training that each compute by themselves: their tokens, in order."""
    row_n: Tensor | None = None
    """Which rows of the whole batch these are, or tokens where each has a slot; None: all."""
    partitions: dict[tuple[object, ...], TokenPartition] = field(default_factory=dict)
    """Made so far, by batch shape and device: all modules of a forward pass share them."""
    parts: dict[tuple[object, ...], "tuple[Tensor, _Assignment]"] = field(default_factory=dict)
    """Made so far, by names and device: rows of these names, and the assignment of these alone."""

    @cached_property
    def names(self) -> tuple[Slot, ...]:
        """Each slot once. The order does not tell who came first: what is prepared for a set of
        adapters serves it again."""
        found = self.recent.union(self.slots)
        return tuple(sorted(found, key=lambda slot: (slot is not None, slot or "")))


class RowMap:
    """Which slot each row of the running batch belongs to; shared by a model's adapted modules.

    Without an assignment the only adapter there is takes all rows. Under activation checkpointing
    an assignment must hold until the backward pass is over, as must where packed rows lie.
    """

    def __init__(self) -> None:
        self.slots: list[str] = []
        self._current: _Assignment | None = None
        self._sequence_T: Tensor | None = None

    @contextmanager
    def packed(self, sequence_T: Tensor) -> Iterator[None]:
        """For the length of a with block the batch is one row of several sequences: `sequence_T` is
        the number of each token's."""
        former, self._sequence_T = self._sequence_T, sequence_T
        try:
            yield
        finally:
            self._sequence_T = former

    def sequences(self, hidden: Tensor) -> Sequences:
        """Which tokens of `hidden` are of one sequence, for a router."""
        if self._sequence_T is not None:
            return self._sequence_T
        return hidden.shape[-2] if hidden.dim() == 3 else None

    def set(
        self,
        slots: Sequence[Slot],
        recent: Collection[Slot] = (),
        drawn: Sequence[Slot] | None = None,
    ) -> None:
        """One slot for each token of the batch, or for each row of a [B, S] batch. `recent` are
        slots that come and go: with them the set of adapters stays the same from step to step.
        `drawn` are those of the tokens that the output head sees, if it does not see all."""
        kept = None if drawn is None else tuple(drawn)
        self._current = self._checked(_Assignment(tuple(slots), frozenset(recent), kept))

    def clear(self) -> None:
        """Forget the assignment."""
        self._current = None

    @contextmanager
    def assign(self, slots: Sequence[Slot]) -> Iterator[None]:
        """`set` for the length of a with block; then the former assignment holds again."""
        with self._scope(_Assignment(tuple(slots))):
            yield

    @contextmanager
    def training(
        self, slots_T: Sequence[Slot], sequence_T: Tensor, seeds: Mapping[Slot, int]
    ) -> Iterator[None]:
        """`assign` for passes that train adapters together: one slot for each token, the number of
        its sequence, and of each slot what its random numbers hang on."""
        assigned = _Assignment(tuple(slots_T), seeds=seeds, sequence_T=sequence_T)
        with self._scope(assigned):
            yield

    @contextmanager
    def apart(self, parts: Sequence[TokenPart]) -> Iterator[None]:
        """`training` where the batch is these parts, one after another, and each is to meet its own
        layers by itself."""
        slots_T = tuple(slot for one in parts for slot in [one.slot] * one.tokens)
        sequence_T = torch.cat([one.sequence_t for one in parts])
        seeds = {one.slot: one.seed for one in parts}
        assigned = _Assignment(slots_T, seeds=seeds, sequence_T=sequence_T, apart=tuple(parts))
        with self._scope(assigned):
            yield

    @property
    def parts(self) -> Sequence[TokenPart]:
        """Those of a batch whose adapters compute apart."""
        return () if self._current is None else self._current.apart

    @contextmanager
    def everywhere(self, slot: Slot) -> Iterator[None]:
        """All rows to one slot, or to the bare base, for the length of a with block."""
        with self._scope(_Assignment((slot,))):
            yield

    def only(self) -> Slot | None:
        """The slot that all rows belong to."""
        return self._sole if self._current is None else self._current.names[0]

    def is_mixed(self) -> bool:
        """Whether rows belong to several slots, or to one as if there were more."""
        current = self._current
        return current is not None and (len(current.names) > 1 or bool(current.seeds))

    def partition(self, hidden: Tensor, *, of_head: bool = False) -> TokenPartition:
        """The tokens of `hidden` [..., D] by slot; of a mixed batch. `of_head`: they are those that
        the output head sees."""
        current = self._current
        assert current is not None
        key = (*hidden.shape[:-1], hidden.device, of_head)
        if key not in current.partitions:
            if of_head and current.drawn is not None:
                slots = _drawn(current.drawn, current.slots, hidden)
            else:
                slots = _by_token(current.slots, hidden)
            with torch.inference_mode(mode=False):  # A training step may come after this one.
                current.partitions[key] = TokenPartition(current, slots, hidden)
        return current.partitions[key]

    def by_row(self, hidden: Tensor) -> bool:
        """Whether the slots are those of the rows of `hidden`, not of its tokens."""
        return self._current is not None and len(self._current.slots) == len(hidden)

    @contextmanager
    def narrowed(self, hidden: Tensor, names: frozenset[Slot]) -> Iterator[Tensor]:
        """Inside the block the batch is the rows of these names alone: gives their indices into
        `hidden`, or into its tokens where each token has a slot. Of a mixed batch."""
        current = self._current
        assert current is not None
        key = (names, hidden.device)
        if key not in current.parts:
            chosen = [row for row, slot in enumerate(current.slots) if slot in names]
            with torch.inference_mode(mode=False):
                row_n = _indices(chosen, hidden.device)
            sequence_T = current.sequence_T
            part = _Assignment(
                tuple(current.slots[row] for row in chosen),
                seeds=current.seeds,
                sequence_T=None if sequence_T is None else sequence_T[row_n],
                row_n=row_n,
            )
            current.parts[key] = row_n, part
        row_n, part = current.parts[key]
        with self._scope(part):
            yield row_n

    @property
    def _sole(self) -> str:
        if len(self.slots) != 1:
            raise InputError(
                f"adapters {self.slots} share this model: say which rows are whose, with "
                "row_map(model).assign([...]) or .everywhere(slot)"
            )
        return self.slots[0]

    @contextmanager
    def _scope(self, assignment: _Assignment) -> Iterator[None]:
        former, self._current = self._current, self._checked(assignment)
        try:
            yield
        finally:
            self._current = former

    def _checked(self, assignment: _Assignment) -> _Assignment:
        unknown = set(assignment.names) - {None, *self.slots}
        if unknown:
            raise InputError(f"no adapter in slot {unknown.pop()!r}; there are {self.slots}")
        return assignment


def _origin(row_n: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Where the tokens of `hidden`, which are these rows or tokens of a batch, lie in it."""
    if row_n is None:
        return None
    of_a_row = hidden.shape[:-1].numel() // max(len(row_n), 1)
    place_s = torch.arange(of_a_row, device=row_n.device)
    return (row_n.unsqueeze(1) * of_a_row + place_s).flatten()


def _indices(numbers: list[int], device: torch.device) -> Tensor:
    return onto(device, torch.tensor(numbers, dtype=torch.int64))


def _drawn(drawn: tuple[Slot, ...], slots: tuple[Slot, ...], hidden: Tensor) -> Sequence[Slot]:
    """Those of the tokens that the head sees: all of a model that computes all, else the drawn
    ones, behind which nobody looks at what comes."""
    tokens = hidden.shape[:-1].numel()
    if tokens == len(slots):
        return slots
    filled = [*drawn, *[slots[0]] * (tokens - len(drawn))]
    return filled[:tokens]


def _by_token(slots: tuple[Slot, ...], hidden: Tensor) -> Sequence[Slot]:
    """One slot for each token of the flattened batch."""
    tokens = hidden.shape[:-1].numel()
    if len(slots) == tokens:
        return slots
    # A mixture's block hands its experts the batch in one row, sequence by sequence.
    rows = len(hidden) if hidden.dim() == 3 else len(slots)
    if len(slots) != rows or tokens % rows:
        raise InputError(f"the row map has {len(slots)} rows, the batch {tokens} tokens")
    return [slot for slot in slots for _ in range(tokens // rows)]
