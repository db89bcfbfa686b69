"""What happened to a run over all its attempts, one line each. Readable without torch.

events.jsonl  {"at", "kind", "message", "step", "worker"}; lines are only ever added
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

Kind: TypeAlias = Literal[
    "started",
    "resumed",
    "exchange",
    "data",
    "finished",
    "failed",
    "lost",
    "hung",
    "skipped",
    "checkpoint failed",
    "upload failed",
]


class RunEvent(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(frozen=True)

    at: float
    """Seconds since 1970, by the clock of whoever noted it."""
    kind: Kind
    """started, resumed (a further attempt), finished, failed (an attempt); exchange: how experts
    and tokens meet; data: what rows lost to data.max_length; lost: a worker's process or node is
    gone; hung: a worker ended itself because nothing moved; skipped: a step."""
    message: str
    """In words, one line."""
    step: int | None = None
    """Optimizer steps done."""
    worker: int | None = None
    """Rank of the worker that is meant."""


class EventLog:
    """Adds to a run's events, from any process that sees its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"

    def note(
        self, kind: Kind, message: str, *, step: int | None = None, worker: int | None = None
    ) -> None:
        """Add a line. It goes to stderr too, and there alone where the disk is full: what tells of
        a failure must not be the next one."""
        line = " ".join(message.split())
        print(f"moetune: {kind}: {line}", file=sys.stderr, flush=True)
        event = RunEvent(at=time.time(), kind=kind, message=line, step=step, worker=worker)
        try:
            self._append(event.model_dump_json(exclude_none=True) + "\n")
        except OSError as error:
            print(f"moetune: {self._path}: {error.strerror}", file=sys.stderr, flush=True)

    def _append(self, text: str) -> None:
        """One write in append mode: lines of several processes do not mix."""
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)


def read_events(folder: Path) -> list[RunEvent]:
    """All events of the run in `folder`, in the order in which they were noted. A line cut short by
    a full disk is left out."""
    path = folder / "events.jsonl"
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(RunEvent.model_validate(json.loads(line)))
        except (json.JSONDecodeError, ValidationError):
            continue
    return events
