"""Which trial has a slot in which pack, and who waits. Plain bookkeeping, without waiting and
without Ray."""

import asyncio
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from workers.train.packed.work import Outcome, Work
from workers.train.task import RunTask


@dataclass(eq=False)
class PackedTrial:
    """A trial under one attempt, from its first question until it leaves."""

    attempt: str
    """Who asks: a trial that is tried again asks as somebody else."""
    task: RunTask
    key: Hashable
    """Trials of one key can share a base."""
    future: "asyncio.Future[Outcome] | None" = None
    """What the next report is put into; None while none is wanted."""
    known: bool = False
    """The pack knows that it is wanted."""
    since: int = 0
    """Number of the Work with which it joined its pack; 0 as long as it has not."""
    moved: float = 0.0
    """When it was last asked for, or answered."""

    @property
    def is_new(self) -> bool:
        """It is wanted, and its pack does not know yet."""
        return self.future is not None and not self.known

    @property
    def is_busy(self) -> bool:
        """Its pack works on its report."""
        return self.future is not None and self.known

    def want(self) -> "asyncio.Future[Outcome]":
        """Its next report is asked for."""
        self.future = asyncio.get_running_loop().create_future()
        self.known, self.moved = False, time.monotonic()
        return self.future

    def answer(self, outcome: Outcome) -> None:
        """Give it to who asked, if anybody did."""
        if self.future is not None and not self.future.done():
            self.future.set_result(outcome)
        self.future, self.moved = None, time.monotonic()


@dataclass(eq=False)
class PackState:
    """A pack as it is seen from here."""

    number: int
    size: int
    expected: int
    """So many members are waited for a moment, so that they go in step."""
    key: Hashable = None
    """Of its members; of the last ones while it has none."""
    members: dict[str, PackedTrial] = field(default_factory=dict)
    leaving: list[str] = field(default_factory=list)
    """Who left, as the pack is to be told."""
    let_go: dict[str, int] = field(default_factory=dict)
    """Names that it was told to let go, by the number of that Work."""
    serial: int = 0
    """Number of the last Work."""
    has_come: bool = False
    """It has asked for work."""
    empty_since: float | None = None
    """When it asked for work first that had nobody any more."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_empty(self) -> bool:
        """Another key may come: nobody is in it any more."""
        return not (self.members or self.leaving or self.let_go)

    def free(self, key: Hashable) -> int:
        """Slots for trials of the key."""
        return self.size - len(self.members) if self.is_empty or key == self.key else 0

    def remove(self, name: str) -> None:
        """A member leaves, and the pack is to be told if it knows it."""
        if self.members.pop(name).since:
            self.leaving.append(name)

    def holds(self, name: str) -> bool:
        """Whether the pack may still work on a member that left."""
        return name in self.leaving or name in self.let_go

    def has_done(self, serial: int) -> bool:
        """The Work of that number is done. Whether names are free by that."""
        before = len(self.let_go)
        self.let_go = {name: number for name, number in self.let_go.items() if number > serial}
        return len(self.let_go) < before

    def take(self, due: bool) -> Work:
        """The pack's next Work, with who left, and if they are `due`, who is wanted. One without a
        number where there is nothing."""
        new = [member for member in self.members.values() if due and member.is_new]
        if not new and not self.leaving:
            return Work()
        self.serial += 1
        join = tuple(member.task for member in new if not member.since)
        for member in new:
            member.known, member.since = True, member.since or self.serial
        leave = tuple(self.leaving)
        self.let_go |= dict.fromkeys(leave, self.serial)
        self.leaving.clear()
        if new:
            self.expected = sum(member.is_busy for member in self.members.values())
        return Work(self.serial, leave, join, tuple(member.task.name for member in new))


class SlotTable:
    """The packs, by number, and the queue."""

    def __init__(self) -> None:
        self.packs: dict[int, PackState] = {}
        self.queue: dict[str, PackedTrial] = {}
        """Who has no slot yet, by name, in the order of coming."""

    def find(self, name: str) -> PackedTrial | None:
        """A trial that is here."""
        return next((one for one in self.everyone() if one.task.name == name), None)

    def remove(self, name: str) -> None:
        """Take a trial out of its pack, or of the queue."""
        self.queue.pop(name, None)
        for pack in self.packs.values():
            if name in pack.members:
                pack.remove(name)

    def everyone(self) -> Iterator[PackedTrial]:
        """All trials that are here."""
        yield from self.queue.values()
        for pack in self.packs.values():
            yield from pack.members.values()

    def count(self) -> int:
        """How many they are."""
        return len(list(self.everyone()))

    def fill(self, pack: PackState) -> None:
        """Give the pack's free slots to who waits, in order; those of an empty one only to whom no
        other pack has a slot. A trial whose former pack has not let go of it yet waits on: two must
        not write into one folder."""
        waiting = self._without_room() if pack.is_empty else list(self.queue.values())
        for member in waiting:
            name = member.task.name
            held = any(other.holds(name) for other in self.packs.values())
            if not held and pack.free(member.key) > 0:
                pack.key = member.key
                pack.members[name] = self.queue.pop(name)

    def lacks_room(self) -> bool:
        """Whether somebody waits for whom no pack has, or will have, a slot."""
        blank = [pack.size for pack in self.packs.values() if pack.is_empty]
        free: dict[Hashable, int] = {}
        for member in self._without_room():
            if not free.get(member.key):
                if not blank:
                    return True
                free[member.key] = blank.pop()
            free[member.key] -= 1
        return False

    def _without_room(self) -> list[PackedTrial]:
        """Who waits beyond the free slots of the packs that have members."""
        free: dict[Hashable, int] = {}
        for pack in self.packs.values():
            if not pack.is_empty:
                free[pack.key] = free.get(pack.key, 0) + pack.free(pack.key)
        beyond = []
        for member in self.queue.values():
            if free.get(member.key, 0) > 0:
                free[member.key] -= 1
            else:
                beyond.append(member)
        return beyond
