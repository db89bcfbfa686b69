"""Gives trials slots in packs: tickets ask for reports, packs pull work. Asyncio, without Ray.

Nothing is pushed: whoever is slow or gone keeps nobody else waiting, and a pack that has no room on
the cluster yet takes no trial.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.tuning.packs.slot_table import PackedTrial, PackState, SlotTable
from workers.run.events import EventLog
from workers.train.packed.key import pack_key
from workers.train.packed.work import Outcome, RunFailedError, Work
from workers.train.task import RunTask

STARTS = 3
"""So many packs in a row may be lost before they ask for work; then who waits fails."""
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
        self._table = SlotTable()
        self._started = 0
        self._never_came = 0
        """Packs in a row that were lost before they asked for work."""
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
        member = self._table.find(task.name)
        if member is not None and member.attempt != attempt:
            self._table.remove(task.name)
            member.answer(RunFailedError("the trial was started again"))
            member = None
        if member is None:
            member = PackedTrial(attempt, task, pack_key(task.spec))
            self._table.queue[task.name] = member
        report = member.want()
        self._start_packs()
        self._wake()
        return await report

    async def leave(self, attempt: str, name: str) -> None:
        """The trial wants no report any more: it has ended, or was stopped."""
        member = self._table.find(name)
        if member is not None and member.attempt == attempt:
            self._table.remove(name)
            self._wake()

    async def work(self, number: int, done: int) -> Work:
        """What a pack does next, that has done its Work of number `done`; one without a number
        where there is no news for some seconds."""
        pack = self._table.packs.get(number)
        if pack is None:
            return Work(over=True)
        pack.has_come, self._never_came = True, 0
        if pack.has_done(done):
            self._wake()  # who waits under a name that is free now may have a slot
        return await self._next(pack)

    async def tell(self, number: int, serial: int, outcomes: Mapping[str, Outcome]) -> None:
        """What came of a pack's members, after its Work of that number."""
        pack = self._table.packs.get(number)
        for name, outcome in outcomes.items():
            member = pack and pack.members.get(name)
            if not pack or not member or not 0 < member.since <= serial:
                continue  # it left meanwhile
            member.answer(outcome)
            if isinstance(outcome, Exception):
                del pack.members[name]
            elif outcome.get("done"):
                pack.remove(name)
        self._wake()

    async def lost(self, number: int, why: str) -> None:
        """A pack is gone. Its members fail, and may ask anew. One that never came had none: who
        waits goes on waiting, for the next one. After some of them who waits fails, or packs that
        cannot start would be started for ever."""
        pack = self._table.packs.pop(number, None)
        if pack is None:
            return
        if pack.has_come:
            self._fail(pack.members.values(), why)
        else:
            self._never_came += 1
            lost = f"{why}, before it asked for work ({self._never_came} in a row)"
            if self._never_came >= STARTS:
                self._fail(self._table.queue.values(), lost)
            else:
                _note(self._table.queue.values(), lost)
        self._start_packs()
        pack.wake.set()
        self._wake()

    async def close(self) -> None:
        """The study has ended: packs are told that their work is over."""
        self._closed = True
        for member in self._table.everyone():
            member.answer(RunFailedError(_ENDED))
        self._wake()

    def _fail(self, trials: Iterable[PackedTrial], why: str) -> None:
        trials = list(trials)
        _note(trials, why)
        for one in trials:
            self._table.queue.pop(one.task.name, None)
            one.answer(RunFailedError(why))

    async def _next(self, pack: PackState) -> Work:
        began = time.monotonic()
        pack.empty_since = None if pack.members else pack.empty_since or began
        while not self._closed and self._table.packs.get(pack.number) is pack:
            pack.wake.clear()
            self._table.fill(pack)
            self._give_up_idle(pack)
            if (work := pack.take(self._is_due(pack))).serial:
                return work
            now = time.monotonic()
            if now - began > self._waits.news:
                return Work()
            if pack.is_empty and now - (pack.empty_since or began) > self._waits.empty:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(pack.wake.wait(), self._waits.look)
        self._table.packs.pop(pack.number, None)
        return Work(over=True)

    def _is_due(self, pack: PackState) -> bool:
        """Whether the pack is to hear of those that are wanted now. One that works hears at once.
        Else some that come a moment later are waited for: what goes in step is one batch."""
        new = [member for member in pack.members.values() if member.is_new]
        if not new:
            return False
        if any(member.is_busy for member in pack.members.values()) or len(new) >= pack.expected:
            return True
        if len(new) == len(pack.members) and self._table.count() >= self._at_once:
            return True  # nobody else can come
        moment = self._waits.others if pack.serial else self._waits.first
        return time.monotonic() - min(member.moved for member in new) >= moment

    def _give_up_idle(self, pack: PackState) -> None:
        """Who was not asked for so long makes room for who waits."""
        since = time.monotonic() - self._waits.idle
        waits = any(member.key == pack.key for member in self._table.queue.values())
        for name, member in list(pack.members.items()):
            if waits and member.future is None and member.moved < since:
                pack.remove(name)

    def _start_packs(self) -> None:
        while not self._closed and self._may_start() and self._table.lacks_room():
            self._start_pack()

    def _may_start(self) -> bool:
        """Whether there are fewer packs than the trials at one time fill."""
        return len(self._table.packs) < math.ceil(self._at_once / self._size)

    def _start_pack(self) -> None:
        self._started += 1
        expected = min(self._size, self._at_once)
        self._table.packs[self._started] = PackState(self._started, self._size, expected)
        self._start(self._started)

    def _wake(self) -> None:
        for pack in self._table.packs.values():
            pack.wake.set()


def _note(trials: Iterable[PackedTrial], why: str) -> None:
    for one in trials:
        EventLog(one.task.plan.folder).note("lost", why)
