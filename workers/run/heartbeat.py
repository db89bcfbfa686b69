"""Where each worker of a run is, for whoever watches. Readable without torch.

ranks/0.json, ranks/1.json, …  one small file for each worker, replaced about once a second
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from workers.run.files import write_text
from workers.run.progress import Progress
from workers.run.record import Metrics

WRITE_SECONDS = 1.0
"""Between two writings of a worker's file, in a run of a few workers."""
WRITES_PER_SECOND = 64
"""Of all workers together: hundreds of them share a file system."""
ENDED = "ended"
"""The phase of a worker that is done or was taken off its run."""


class Heartbeat(BaseModel):
    """What a worker's file says."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    rank: int
    workers: int
    step: int
    """Optimizer steps done."""
    phase: str
    """What it does now: loading, encode (rows, or wait for who encodes them), data, forward,
    backward, reduce, update, evaluate, save, report (waiting for the search to go on) or ended."""
    beats: int
    """Phases begun so far. All workers go through the same ones: a smaller number is behind."""
    seconds: float
    """In this phase, by the worker's own clock."""
    at: float
    """When this was written, in seconds since 1970."""
    every: float
    """Seconds between two writings, as long as the process lives."""
    host: str = ""
    pid: int = 0
    progress: Progress | None = None
    """The last step's figures; the same in every worker, so only the first one's file has them."""


class _Whereabouts(NamedTuple):
    step: int
    phase: str
    beats: int
    since: float


class HeartbeatWriter:
    """A worker's own knowledge of where it is. Beats cost next to nothing; nothing is written
    unless `write` starts it."""

    def __init__(self, rank: int = 0, workers: int = 1) -> None:
        self.rank, self.workers = rank, workers
        self.progress: Progress | None = None
        """The last step's figures."""
        # Replaced as a whole, because another thread reads it.
        self._place = _Whereabouts(0, "loading", 0, time.monotonic())
        self._stopped = threading.Event()

    def beat(self, phase: str, step: int | None = None) -> None:
        """A phase begins, of the same step as the last one unless `step` is given."""
        last = self._place
        step = last.step if step is None else step
        self._place = _Whereabouts(step, phase, last.beats + 1, time.monotonic())

    def moving(self) -> None:
        """The phase goes on, and does not hang."""
        self._place = self._place._replace(since=time.monotonic())

    def stop(self) -> None:
        """The run is over for this worker."""
        self.beat(ENDED)
        self._stopped.set()

    def standing(self) -> tuple[int, str, float]:
        """Step, phase, and seconds in this phase."""
        place = self._place
        return place.step, place.phase, time.monotonic() - place.since

    def write(
        self, folder: Path, observe: Callable[[Metrics], None] | None = None
    ) -> "HeartbeatWriter":
        """Write `ranks/RANK.json` in `folder` until `stop`, and show the figures to `observe`.

        A thread does it: a slow or full disk holds up no step, and the file of a worker that hangs
        in a collective still says in which phase. Returns the heartbeat itself.
        """
        threading.Thread(
            target=self._write, args=(folder, observe), name="moetune-heartbeat", daemon=True
        ).start()
        return self

    def _write(self, folder: Path, observe: Callable[[Metrics], None] | None) -> None:
        every = max(WRITE_SECONDS, self.workers / WRITES_PER_SECOND)
        shown, stopped = None, False
        while True:
            progress, place = self.progress, self._place
            with suppress(OSError):  # the disk may be full: training goes on, unseen
                _path(folder, self.rank).parent.mkdir(parents=True, exist_ok=True)
                text = self._heartbeat(place, every).model_dump_json()
                write_text(_path(folder, self.rank), text + "\n")
            if observe and progress and progress is not shown:
                with suppress(Exception):  # who watches must not end what is watched
                    observe(progress.report())
                shown = progress
            if stopped:
                return
            stopped = self._stopped.wait(every)

    def _heartbeat(self, place: _Whereabouts, every: float) -> Heartbeat:
        return Heartbeat(
            rank=self.rank,
            workers=self.workers,
            step=place.step,
            phase=place.phase,
            beats=place.beats,
            seconds=time.monotonic() - place.since,
            at=time.time(),
            every=every,
            host=socket.gethostname(),
            pid=os.getpid(),
            progress=self.progress if self.rank == 0 else None,
        )


def read(folder: Path) -> list[Heartbeat]:
    """The workers of the run in `folder`, by rank; of an attempt with more workers, what is left
    over is not among them. What cannot be read is not there."""
    found = []
    for path in folder.glob("ranks/*.json"):
        with suppress(OSError, ValueError):
            found.append(Heartbeat.model_validate_json(path.read_text()))
    workers = max(found, key=lambda one: one.at).workers if found else 0
    return sorted((one for one in found if one.rank < workers), key=lambda one: one.rank)


def _path(folder: Path, rank: int) -> Path:
    return folder / "ranks" / f"{rank}.json"
