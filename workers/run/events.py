"""What happened to a run over all its attempts, one line each. Readable without torch.

events.jsonl  {"at", "kind", "message", "step", "worker"}; lines are only ever added
"""

import sys
import time
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from workers.run.json_lines import append_line, read_lines

EVENTS = "events.jsonl"
Kind: TypeAlias = Literal[
    "started",
    "resumed",
    "pack",
    "exchange",
    "attention",
    "norms",
    "compile",
    "data",
    "finished",
    "failed",
    "lost",
    "hung",
    "skipped",
    "memory",
    "checkpoint failed",
    "upload failed",
]


class RunEvent(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(frozen=True)

    at: float
    """Seconds since 1970, by the clock of whoever noted it."""
    kind: Kind
    """started, resumed (a further attempt), finished, failed (an attempt); pack: where it runs
    beside others; exchange: how experts and tokens meet; attention, norms: how they are computed;
    data: what rows lost to data.max_length, or which are learned and compared on; lost: a worker's
    process or node is gone; hung: a worker ended itself because nothing moved; skipped: a step;
    memory: passes are smaller from there on, for memory ran out."""
    message: str
    """In words, one line."""
    step: int | None = None
    """Optimizer steps done."""
    worker: int | None = None
    """Rank of the worker that is meant."""


class EventLog:
    """Adds to a run's events, from any process that sees its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS

    def note(
        self, kind: Kind, message: str, *, step: int | None = None, worker: int | None = None
    ) -> None:
        """Add a line. It goes to stderr too, and there alone where the disk is full: what tells of
        a failure must not be the next one."""
        line = " ".join(message.split())
        print(f"moetune: {kind}: {line}", file=sys.stderr, flush=True)
        event = RunEvent(at=time.time(), kind=kind, message=line, step=step, worker=worker)
        try:
            append_line(self._path, event.model_dump_json(exclude_none=True))
        except OSError as error:
            print(f"moetune: {self._path}: {error.strerror}", file=sys.stderr, flush=True)


def read_events(folder: Path) -> list[RunEvent]:
    """All events of the run in `folder`, in the order in which they were noted."""
    return read_lines(folder / EVENTS, RunEvent.model_validate_json)
