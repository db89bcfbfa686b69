"""Ends a worker that hangs, so that Ray Train starts the group again from its last checkpoint.

In a collective a worker waits for all others, for ever if one of them never comes. What each one
does is in the heartbeat files; the one that is behind is the one to look at.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.run import heartbeat
from workers.run.heartbeat import ENDED, Heartbeat, HeartbeatWriter

EXIT_CODE = 86
"""Of a process that the watchdog ended."""
_LOOK_SECONDS = 15.0
"""A worker that stands for so long looks how long the others do; at the limit it must know."""
_NOT_WATCHED = ("loading", "report", ENDED)
"""Phases that may take any time: torch.distributed and Ray Train have limits of their own there."""


class Watchdog:
    """Looks after one worker, in a thread of its process."""

    def __init__(
        self, heartbeat: HeartbeatWriter, folder: Path, limit: float, tell: Callable[[str], None]
    ) -> None:
        """`limit`: seconds in one phase; `tell` gets the reason just before the process ends."""
        self._heartbeat, self._folder, self._limit, self._tell = heartbeat, folder, limit, tell
        self._stopped = threading.Event()
        self._written: dict[int, tuple[float, float]] = {}
        """By rank, what its last file says of when, and when by our clock that came."""

    def start(self) -> "Watchdog":
        """Begin to watch; returns itself."""
        threading.Thread(target=self._watch, name="moetune-watchdog", daemon=True).start()
        return self

    def stop(self) -> None:
        """The worker is done."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._limit / 4)):
            _, phase, seconds = self._heartbeat.standing()
            if phase in _NOT_WATCHED or seconds < min(self._limit / 4, _LOOK_SECONDS):
                continue
            everyone = [self._aged(one) for one in heartbeat.read(self._folder)]
            others = (idle(one) for one in everyone if one.rank != self._heartbeat.rank)
            if seconds < self._limit or any(one < self._limit for one in others):
                continue  # this worker waits for one that still moves
            self._tell(verdict(self._heartbeat.rank, seconds, everyone))
            os._exit(EXIT_CODE)  # an exception would not reach a thread that is stuck in C

    def _aged(self, one: Heartbeat) -> Heartbeat:
        """A worker as it stands now, by our own clock: its host's may be an hour wrong."""
        now = time.monotonic()
        at, since = self._written.get(one.rank, (None, now))
        since = since if at == one.at else now
        self._written[one.rank] = one.at, since
        return one.model_copy(update={"seconds": one.seconds + now - since, "at": time.time()})


def idle(one: Heartbeat) -> float:
    """Seconds since a worker moved: in its phase when it wrote, and since it wrote."""
    return one.seconds + max(0.0, time.time() - one.at)


def behind(everyone: Sequence[Heartbeat]) -> list[Heartbeat]:
    """The workers that the others wait for: those that went through the fewest phases."""
    fewest = min((one.beats for one in everyone), default=0)
    return [one for one in everyone if one.beats == fewest]


def verdict(rank: int, seconds: float, everyone: Sequence[Heartbeat]) -> str:
    """Why worker `rank` is ended, and which worker lags."""
    said = f"worker {rank}: nothing moved for {seconds:.0f} s; "
    late = behind(everyone)
    if len(late) == len(everyone):
        return said + f"all workers are in the same place: {_places(late)}"
    rest = [one for one in everyone if one not in late]
    return said + f"behind is {_places(late)}; waiting for it: {_places(rest)}"


def _places(some: Sequence[Heartbeat]) -> str:
    return ", ".join(
        f"worker {one.rank} (step {one.step + 1}, {one.phase}, {idle(one):.0f} s; "
        f"process {one.pid} on {one.host})"
        for one in some
    )
