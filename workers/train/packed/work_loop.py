"""Leads a pack through its work: the loop between its steps, alike on every worker."""

import os
import socket
from collections.abc import Callable
from typing import TypeVar

from workers.parallel.world import World
from workers.run.events import EventLog
from workers.train.packed.pack import Pack
from workers.train.packed.work import Outcome, Work, WorkQueue, told
from workers.train.task import RunTask

Item = TypeVar("Item")


class WorkLoop:
    """Does what the queue says, until the work is over. Only the first worker's queue is asked."""

    def __init__(
        self, pack: Pack, queue: WorkQueue, place: str, world: World | None = None
    ) -> None:
        """`place`: the pack and its size as events name them, as in `8 in pack 1`."""
        self._pack, self._queue, self._place = pack, queue, place
        self._world = world or World()
        self._serial = 0
        self._slots: dict[str, int] = {}
        """Of members, by name, from 1; as events name them."""
        self._wanting: set[str] = set()

    def run(self) -> None:
        """Joint steps, and between them whoever joins and leaves."""
        while not (work := self._take()).over:
            outcomes = self._change(work) if work.serial else {}
            if self._wanting:
                outcomes |= self._pack.round(sorted(self._wanting))
            self._wanting -= outcomes.keys()
            for name, outcome in outcomes.items():
                if isinstance(outcome, Exception):
                    self._slots.pop(name, None)
            if outcomes and self._world.is_first:
                self._queue.tell(self._serial, {k: _as_told(v) for k, v in outcomes.items()})

    def _take(self) -> Work:
        wait = not self._wanting
        return self._first(lambda: self._queue.take(wait=wait))

    def _change(self, work: Work) -> dict[str, Outcome]:
        self._serial = work.serial
        for name in work.leave:
            self._pack.leave(name)
            self._slots.pop(name, None)
            self._wanting.discard(name)
        failed = {task.name: error for task in work.join if (error := self._join(task))}
        self._wanting |= set(work.want) - failed.keys()
        return dict(failed)

    def _join(self, task: RunTask) -> Exception | None:
        try:
            self._pack.join(task)
        except Exception as error:
            self._agree(error)
            return error
        self._agree(None)
        taken = set(self._slots.values())
        self._slots[task.name] = slot = min(set(range(1, len(taken) + 2)) - taken)
        if self._world.is_first:
            here = f"process {os.getpid()} on {socket.gethostname()}"
            EventLog(task.plan.folder).note("pack", f"slot {slot} of {self._place}, {here}")
        return None

    def _agree(self, error: Exception | None) -> None:
        """A run that only some workers could begin ends them all, who else wait for each other."""
        if len(set(self._world.gather(error is None))) > 1:
            raise error or RuntimeError("another worker could not begin the run")

    def _first(self, value: Callable[[], Item]) -> Item:
        """What the first worker says, on every worker."""
        mine = value() if self._world.is_first else None
        first: Item = self._world.gather(mine)[0]
        return first


def _as_told(outcome: Outcome) -> Outcome:
    return told(outcome) if isinstance(outcome, Exception) else outcome
