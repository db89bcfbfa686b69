"""What a watch has seen and done: lines that are only ever appended, and its only memory.

So it may run for ever or once an hour from cron, and be killed in between.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filelock import lock_descriptor
from pydantic import Field, ValidationError

from workers.config.base import InputError, Spec

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
        with self._path.open("a+b") as file:
            if file.tell() and not self._path.read_bytes().endswith(b"\n"):
                file.write(b"\n")  # a crash has cut the last line short
            file.write(entry.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return entry

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other watches of the name out; InputError where one is at it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as file:
            if not lock_descriptor(file.fileno(), blocking=False):
                raise InputError(f"{self._path.parent}: another watch is at it")
            yield

    def entries(self) -> list[Entry]:
        """All lines, oldest first; one that a crash has cut short is left out."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        found = []
        for line in lines:
            try:
                found.append(Entry.model_validate(json.loads(line)))
            except (ValueError, ValidationError):
                continue
        return found

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
