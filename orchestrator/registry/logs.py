"""Names' states, kept up to date from their logs: each look reads what is new."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.registry.models import Event
from orchestrator.registry.state import Rollout, Unreadable, state_of
from workers.config.base import InputError, validated

log = logging.getLogger(__name__)
EventRow = Mapping[Any, Any]
Read = Callable[[str, int], Sequence[EventRow]]
"""The events of a name from a revision on, as the database has them."""


class _KnownLog(NamedTuple):
    state: Rollout
    last: EventRow
    """The event that led to it."""


class Logs:
    """What names' logs come to. Any thread may ask."""

    def __init__(self, read: Read) -> None:
        """`read` may block, and raise."""
        self._read = read
        self._known: dict[str, _KnownLog] = {}
        self._reading = threading.Lock()
        self._told: set[tuple[str, int]] = set()
        """Events that cannot be read: each is told once."""

    def state(self, name: str) -> Rollout | None:
        """A name's state as far as its log can be read; None where it has none."""
        with self._reading:
            known = self._newer(name)
            if known is None:
                self._known.pop(name, None)
                return None
            self._known[name] = known
            return known.state

    def _newer(self, name: str) -> _KnownLog | None:
        """What is known, and what has come since. The last event that is known is read again: a
        database that was put in the place of another may have another one there, or none."""
        known = self._known.get(name)
        if known is not None:
            rows = self._read(name, known.state.revision)
            if rows and dict(rows[0]) == known.last:
                return self._after(known, rows[1:])
        return self._after(None, self._read(name, 0))

    def _after(self, known: _KnownLog | None, rows: Sequence[EventRow]) -> _KnownLog | None:
        """The state after these events, up to the first that cannot be read."""
        try:
            state = state_of(map(event_of, rows), known.state if known else None)
        except Unreadable as error:
            self._tell(error)
            return self._after(known, [row for row in rows if row["revision"] < error.revision])
        return _KnownLog(state, dict(rows[-1])) if state and rows else known

    def _tell(self, error: Unreadable) -> None:
        if (error.name, error.revision) not in self._told:
            self._told.add((error.name, error.revision))
            log.warning("%s; the name stays as it was before that", error)


def event_of(row: EventRow) -> Event:
    """An event out of a database; Unreadable where it is of a kind that is not known here."""
    try:
        return validated(Event, dict(row), "event")
    except InputError as error:
        raise Unreadable(row["name"], row["revision"], str(error)) from None
