"""What a watch has seen and done: lines that are only ever appended, and its only memory.

So it may run for ever or once an hour from cron, and be killed in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from workers.config.base import InputError, Spec
from workers.run.files import locked
from workers.run.json_lines import append_line, read_lines

Kind = Literal["measured", "submitted", "unsent", "failed", "kept", "proposed", "canary"]


class Entry(Spec):
    """One line."""

    at: datetime
    kind: Kind
    """measured: labelled rows were answered; submitted: a training began; unsent: it did not, since
    no cluster took it. Else it ends as failed, kept (the champion is better), proposed or canary.
    """
    why: str
    """In words."""
    study: str | None = None
    """The training's; on a cluster also its job's id."""
    version: str | None = None
    """What came of it."""
    evidence: dict[str, Any] = Field(default_factory=dict)


class Journal:
    """The lines about one name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, kind: Kind, why: str, **fields: Any) -> Entry:
        """Append a line, and bring it to the disk."""
        entry = Entry(at=datetime.now(UTC), kind=kind, why=why, **fields)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._path, entry.model_dump_json(), durable=True)
        return entry

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other watches of the name out; InputError where one is at it."""
        with locked(self._path.with_suffix(".lock")) as alone:
            if not alone:
                raise InputError(f"{self._path.parent}: another watch is at it")
            yield

    def entries(self) -> list[Entry]:
        """All lines, oldest first."""
        return read_lines(self._path, Entry.model_validate_json)

    def running(self) -> Entry | None:
        """The training that has not ended."""
        last = next((e for e in reversed(self.entries()) if e.kind != "measured"), None)
        return last if last and last.kind == "submitted" else None

    def last(self, kind: Kind) -> Entry | None:
        """The latest line of a kind."""
        return next((entry for entry in reversed(self.entries()) if entry.kind == kind), None)

    def begun(self) -> list[Entry]:
        """The trainings that some cluster took, oldest first."""
        entries = self.entries()
        unsent = {entry.study for entry in entries if entry.kind == "unsent"}
        return [e for e in entries if e.kind == "submitted" and e.study not in unsent]

    def begun_since(self, time: timedelta) -> int:
        """How many of them began within this time."""
        since = datetime.now(UTC) - time
        return sum(entry.at >= since for entry in self.begun())
