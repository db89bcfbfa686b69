"""The loop between a pack's steps, with a pack of no substance."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.record import Metrics, RunPlan
from workers.train.packed.pack import Pack
from workers.train.packed.work import Outcome, RunFailedError, Work
from workers.train.packed.work_loop import WorkLoop
from workers.train.step import DivergedError
from workers.train.task import RunTask


class CountingPack:
    """Each member reports at every second round that it is wanted in."""

    def __init__(
        self, bad: Collection[str] = (), fails: dict[str, Exception] | None = None
    ) -> None:
        self.rounds: dict[str, int] = {}
        self.calls: list[str] = []
        self._bad, self._fails = bad, fails or {}

    def join(self, task: RunTask) -> None:
        """Those that are bad raise."""
        if task.name in self._bad:
            raise InputError(f"{task.name} is bad")
        self.rounds[task.name] = 0

    def leave(self, name: str) -> None:
        """Of one that is not here nothing comes."""
        self.rounds.pop(name, None)
        self.calls.append(f"leave {name}")

    def round(self, wanting: Collection[str]) -> dict[str, Metrics | Exception]:
        """Reports are the rounds so far."""
        self.calls.append(f"round {' '.join(wanting)}")
        outcomes: dict[str, Metrics | Exception] = {}
        for name in wanting:
            self.rounds[name] += 1
            if name in self._fails:
                del self.rounds[name]
                outcomes[name] = self._fails[name]
            elif self.rounds[name] % 2 == 0:
                outcomes[name] = {"step": self.rounds[name]}
        return outcomes


class ListedWork:
    """A queue that gives one Work after another, and notes whether it was waited for."""

    def __init__(self, *works: Work) -> None:
        self._works = [*works, Work(over=True)]
        self.waited: list[bool] = []
        self.told: list[tuple[int, dict[str, Outcome]]] = []

    def take(self, *, wait: bool) -> Work:
        """The next one."""
        self.waited.append(wait)
        return self._works.pop(0)

    def tell(self, serial: int, outcomes: dict[str, Outcome]) -> None:
        """Keep them."""
        self.told.append((serial, outcomes))


def run_pack(pack: CountingPack, *works: Work) -> ListedWork:
    queue = ListedWork(*works)
    WorkLoop(cast(Pack, pack), queue, "3 in pack 7").run()
    return queue


def tasks(make_spec: Callable[..., TrainSpec], folder: Path, names: str) -> tuple[RunTask, ...]:
    found = []
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        found.append(RunTask(make_spec(), RunPlan(folder / name, "study")))
    return tuple(found)


def test_members_join_and_leave_between_rounds(make_spec: Any, tmp_path: Path) -> None:
    pack = CountingPack()
    queue = run_pack(
        pack,
        Work(1, join=tasks(make_spec, tmp_path, "ab"), want=("a", "b")),
        Work(2, join=tasks(make_spec, tmp_path, "c"), want=("c",)),
        Work(3, leave=("a",), want=("b",)),
        Work(4, join=tasks(make_spec, tmp_path, "d"), want=("d",)),
    )
    assert pack.calls == ["round a b", "round a b c", "leave a", "round b c", "round b d"]
    assert queue.told == [
        (2, {"a": {"step": 2}, "b": {"step": 2}}),
        (3, {"c": {"step": 2}}),
        (4, {"b": {"step": 4}}),
    ]
    assert queue.waited == [True, False, False, False, False], "steps wait for no news"
    where = {name: read_events(tmp_path / name)[-1].message for name in "abcd"}
    slots = {name: text.partition(",")[0] for name, text in where.items()}
    assert slots == {
        "a": "slot 1 of 3 in pack 7",
        "b": "slot 2 of 3 in pack 7",
        "c": "slot 3 of 3 in pack 7",
        "d": "slot 1 of 3 in pack 7",
    }


def test_who_fails_fails_alone(make_spec: Any, tmp_path: Path) -> None:
    pack = CountingPack(bad="a", fails={"b": DivergedError("b diverged"), "c": OSError("no disk")})
    work = Work(1, join=tasks(make_spec, tmp_path, "abcd"), want=("a", "b", "c", "d"))
    queue = run_pack(pack, work, Work())
    (_, first), (_, second) = queue.told
    assert {name: (type(error), str(error)) for name, error in first.items()} == {
        "a": (InputError, "a is bad"),
        "b": (RunFailedError, "b diverged"),
        "c": (RunFailedError, "OSError: no disk"),
    }
    assert second == {"d": {"step": 2}}
    assert not read_events(tmp_path / "a")
