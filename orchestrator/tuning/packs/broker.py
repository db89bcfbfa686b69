"""Gives trials slots in packs: tickets ask for reports, packs pull work. Asyncio, without Ray.

Nothing is pushed: whoever is slow or gone keeps nobody else waiting, and a pack that has no room on
the cluster yet takes no trial.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.tuning.packs.book import Book, Crew, Seat
from workers.run.events import EventLog
from workers.train.packed.key import pack_key
from workers.train.packed.work import Outcome, RunFailedError, Work
from workers.train.task import RunTask

_ENDED = "the study has ended"


@dataclass(frozen=True)
class Waits:
    """How long what is waited for, in seconds."""

    first: float = 2.0
    """For the other trials, at the start of a pack."""
    others: float = 0.3
    """For the others after a report: Tune takes reports one by one."""
    idle: float = 60.0
    """For a member that nobody asks for, while others wait for a slot."""
    empty: float = 60.0
    """Until a pack without members ends."""
    news: float = 10.0
    """Until a pack hears that there is none: several workers wait for each other only so long."""
    look: float = 0.1
    """Between two looks, at most."""


class Broker:
    """One study's. All methods run in one event loop."""

    def __init__(
        self,
        size: int,
        at_once: int,
        start: Callable[[int], None],
        waits: Waits | None = None,
    ) -> None:
        """`size` slots a pack, for `at_once` trials. `start(number)` begins a pack, which then
        calls `work`; whoever starts it says by `lost` that it is gone."""
        self._size, self._at_once, self._start = size, at_once, start
        self._waits = waits or Waits()
        self._book = Book()
        self._started = 0
        self._closed = False

    async def begin(self) -> None:
        """Start all packs that the trials at one time fill: they load while tickets do."""
        while self._may_start():
            self._start_pack()

    async def ask(self, attempt: str, task: RunTask) -> Outcome:
        """The trial's next report; the first time it joins a pack, going on from its checkpoints.

        An `attempt` other than the last one replaces it: its process was lost.
        """
        if self._closed:
            return RunFailedError(_ENDED)
        member = self._book.find(task.name)
        if member is not None and member.attempt != attempt:
            self._book.remove(task.name)
            member.answer(RunFailedError("the trial was started again"))
            member = None
        if member is None:
            member = Seat(attempt, task, pack_key(task.spec))
            self._book.queue[task.name] = member
        report = member.want()
        self._start_packs()
        self._wake()
        return await report

    async def leave(self, attempt: str, name: str) -> None:
        """The trial wants no report any more: it has ended, or was stopped."""
        member = self._book.find(name)
        if member is not None and member.attempt == attempt:
            self._book.remove(name)
            self._wake()

    async def work(self, number: int, done: int) -> Work:
        """What a pack does next, that has done its Work of number `done`; one without a number
        where there is no news for some seconds."""
        crew = self._book.crews.get(number)
        if crew is None:
            return Work(over=True)
        crew.has_come = True
        if crew.has_done(done):
            self._wake()  # who waits under a name that is free now may have a slot
        return await self._next(crew)

    async def tell(self, number: int, serial: int, outcomes: Mapping[str, Outcome]) -> None:
        """What came of a pack's members, after its Work of that number."""
        crew = self._book.crews.get(number)
        for name, outcome in outcomes.items():
            member = crew and crew.members.get(name)
            if not crew or not member or not 0 < member.since <= serial:
                continue  # it left meanwhile
            member.answer(outcome)
            if isinstance(outcome, Exception):
                del crew.members[name]
            elif outcome.get("done"):
                crew.remove(name)
        self._wake()

    async def lost(self, number: int, why: str) -> None:
        """A pack is gone. Its members fail, and may ask anew. If it never came, who waits fails: a
        pack that cannot start would be started for ever."""
        crew = self._book.crews.pop(number, None)
        if crew is None:
            return
        for member in list((crew.members if crew.has_come else self._book.queue).values()):
            self._book.queue.pop(member.task.name, None)
            EventLog(member.task.plan.folder).note("lost", why)
            member.answer(RunFailedError(why))
        self._start_packs()
        crew.wake.set()
        self._wake()

    async def close(self) -> None:
        """The study has ended: packs are told that their work is over."""
        self._closed = True
        for member in self._book.everyone():
            member.answer(RunFailedError(_ENDED))
        self._wake()

    async def _next(self, crew: Crew) -> Work:
        began = time.monotonic()
        crew.empty_since = None if crew.members else crew.empty_since or began
        while not self._closed and self._book.crews.get(crew.number) is crew:
            crew.wake.clear()
            self._book.fill(crew)
            self._give_up_idle(crew)
            if (work := crew.take(self._is_due(crew))).serial:
                return work
            now = time.monotonic()
            if now - began > self._waits.news:
                return Work()
            if crew.is_empty and now - (crew.empty_since or began) > self._waits.empty:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(crew.wake.wait(), self._waits.look)
        self._book.crews.pop(crew.number, None)
        return Work(over=True)

    def _is_due(self, crew: Crew) -> bool:
        """Whether the pack is to hear of those that are wanted now. One that works hears at once.
        Else some that come a moment later are waited for: what goes in step is one batch."""
        new = [member for member in crew.members.values() if member.is_new]
        if not new:
            return False
        if any(member.is_busy for member in crew.members.values()) or len(new) >= crew.expected:
            return True
        if len(new) == len(crew.members) and self._book.count() >= self._at_once:
            return True  # nobody else can come
        moment = self._waits.others if crew.serial else self._waits.first
        return time.monotonic() - min(member.moved for member in new) >= moment

    def _give_up_idle(self, crew: Crew) -> None:
        """Who was not asked for so long makes room for who waits."""
        since = time.monotonic() - self._waits.idle
        waits = any(member.key == crew.key for member in self._book.queue.values())
        for name, member in list(crew.members.items()):
            if waits and member.future is None and member.moved < since:
                crew.remove(name)

    def _start_packs(self) -> None:
        while not self._closed and self._may_start() and self._book.lacks_room():
            self._start_pack()

    def _may_start(self) -> bool:
        """Whether there are fewer packs than the trials at one time fill."""
        return len(self._book.crews) < math.ceil(self._at_once / self._size)

    def _start_pack(self) -> None:
        self._started += 1
        expected = min(self._size, self._at_once)
        self._book.crews[self._started] = Crew(self._started, self._size, expected)
        self._start(self._started)

    def _wake(self) -> None:
        for crew in self._book.crews.values():
            crew.wake.set()
