"""Several adapters on one frozen base: which rows of a batch go to which of them.

Shapes: T tokens of the batch (its leading dimensions flattened), D a site's input, O its output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from workers.layers.feed_forward import FeedForward
from workers.spec import InputError

Slot = str | None
"""Name of an adapter; None is the bare base."""


@dataclass(frozen=True)
class _Assignment:
    slots: tuple[Slot, ...]
    """One for each row; a single name holds for all rows, however many there are."""
    indices: dict[tuple[object, ...], list[Tensor]] = field(default_factory=dict)
    """Row indices made so far, by batch shape and device: all sites of a forward share them."""

    @cached_property
    def names(self) -> tuple[Slot, ...]:
        """Each slot once, in order of appearance."""
        return tuple(dict.fromkeys(self.slots))


class RowMap:
    """Which slot each row of the running batch belongs to; shared by all sites of a model.

    Without an assignment the only adapter there is takes all rows. Under activation checkpointing
    an assignment must hold until the backward pass is over.
    """

    def __init__(self) -> None:
        self.slots: list[str] = []
        self._current: _Assignment | None = None

    def set(self, slots: Sequence[Slot]) -> None:
        """One slot for each token of the batch, or for each row of a [B, S] batch."""
        self._current = self._checked(_Assignment(tuple(slots)))

    def clear(self) -> None:
        """Forget the assignment."""
        self._current = None

    @contextmanager
    def assign(self, slots: Sequence[Slot]) -> Iterator[None]:
        """`set` for the length of a with block; then the former assignment holds again."""
        with self._scope(_Assignment(tuple(slots))):
            yield

    @contextmanager
    def everywhere(self, slot: Slot) -> Iterator[None]:
        """All rows to one slot, or to the bare base, for the length of a with block."""
        with self._scope(_Assignment((slot,))):
            yield

    def groups(self, hidden: Tensor) -> list[tuple[Slot, Tensor | None]]:
        """The slots of `hidden` [..., D], each with its rows of [T, D]; None means all rows."""
        if self._current is None:
            return [(self._only(), None)]
        names = self._current.names
        if len(names) == 1:
            return [(names[0], None)]
        key = (*hidden.shape[:-1], hidden.device)
        if key not in self._current.indices:
            self._current.indices[key] = _indices(self._current.slots, hidden)
        return list(zip(names, self._current.indices[key], strict=True))

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

    def _only(self) -> str:
        if len(self.slots) != 1:
            raise InputError(
                f"adapters {self.slots} share this model: say which rows are whose, with "
                "row_map(model).assign([...]) or .everywhere(slot)"
            )
        return self.slots[0]


def _indices(slots: tuple[Slot, ...], hidden: Tensor) -> list[Tensor]:
    """For each slot, in order of appearance, its rows of the flattened batch."""
    tokens = hidden.shape[:-1].numel()
    if len(slots) != tokens:
        if hidden.dim() != 3 or len(slots) != len(hidden):
            raise InputError(f"the row map has {len(slots)} rows, the batch {tokens} tokens")
        slots = tuple(slot for slot in slots for _ in range(hidden.shape[1]))
    rows: dict[Slot, list[int]] = {}
    for row, slot in enumerate(slots):
        rows.setdefault(slot, []).append(row)
    return [torch.tensor(chosen, device=hidden.device) for chosen in rows.values()]


class Site(nn.Module):
    """A place of the model where adapters attach: the frozen `base` and one layer for each slot."""

    def __init__(
        self, base: nn.Module, rows: RowMap, feed_forward: FeedForward | None = None
    ) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.rows = rows
        self.feed_forward = feed_forward
        """How the base was read, if it is a feed-forward block."""
        self.training = base.training  # A model in eval mode must not get dropout.

    @property
    def weight(self) -> Tensor:
        """The base's weight: some models look at its type or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def add(self, slot: str, layer: nn.Module) -> None:
        """Attach `layer` for `slot`, on the base's device and in its mode."""
        device = next(self.base.parameters()).device
        self.adapters[_key(slot)] = layer.to(device).train(self.training)

    def take_off(self, slot: str) -> None:
        """Detach the layer of `slot`."""
        del self.adapters[_key(slot)]

    def forward(self, hidden: Tensor) -> Tensor:
        """The base with each row's adapter: [..., D] to [..., O]."""
        groups = self.rows.groups(hidden)
        if len(groups) == 1:
            return self._run(groups[0][0], hidden)
        hidden_TD = hidden.reshape(-1, hidden.shape[-1])
        outputs, indices = [], []
        for slot, rows in groups:
            assert rows is not None
            with self.rows.everywhere(slot):  # For sites inside this one: they see these rows only.
                outputs.append(self._run(slot, hidden_TD[rows]))
            indices.append(rows)
        grouped_TO = torch.cat(outputs)
        output_TO = torch.zeros_like(grouped_TO).index_copy(0, torch.cat(indices), grouped_TO)
        return output_TO.view(*hidden.shape[:-1], -1)

    def _run(self, slot: Slot, hidden: Tensor) -> Tensor:
        if slot is None or _key(slot) not in self.adapters:
            output: Tensor = self.base(hidden)
            return output
        layer = self.adapters[_key(slot)]
        adapted = layer(self.feed_forward or self.base, hidden.reshape(-1, hidden.shape[-1]))
        output = adapted.output_TO
        return output.view(*hidden.shape[:-1], -1)


def _key(slot: str) -> str:
    """A slot's key in a ModuleDict, which allows neither dots nor names such as `keys`."""
    return "slot_" + slot.encode().hex()
