"""The broker without a cluster: who gets a slot when, and what happens when something is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tuning.packs.broker import STARTS, Broker, Waits
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.record import RunPlan
from workers.train.packed.work import RunFailedError, Work
from workers.train.task import RunTask

SHORT = Waits(first=0.2, others=0.1, idle=0.2, empty=0.2, news=30.0, look=0.02)
SOON = 10.0
"""Longer than anything here takes, on a loaded machine too."""


class Study:
    """A broker, and what its tickets have got."""

    def __init__(self, folder: Path, size: int, at_once: int, waits: Waits = SHORT) -> None:
        self.folder = folder
        self.started: list[int] = []
        self.broker = Broker(size, at_once, self.started.append, waits)

    def ask(self, name: str, attempt: str = "first", max_length: int = 64) -> "asyncio.Task[Any]":
        """A ticket asks, and waits."""
        spec = TrainSpec.model_validate(
            {
                "model": {"path": "base"},
                "data": {"train": "r", "validation": "v", "max_length": max_length},
            }
        )
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        task = RunTask(spec, RunPlan(folder, "study"))
        return asyncio.ensure_future(self.broker.ask(attempt, task))

    async def work(self, number: int = 1, done: int = 0) -> Work:
        """A pack asks."""
        return await asyncio.wait_for(self.broker.work(number, done), SOON)


def on_loop(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """A test that runs in an event loop."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 6 * SOON))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def names(work: Work) -> list[str]:
    return [task.name for task in work.join]


@on_loop
async def test_trials_join_in_their_order_and_hear_of_their_reports(folder: Path) -> None:
    study = Study(folder, size=2, at_once=3)
    first, second, third = (study.ask(name) for name in "abc")
    await asyncio.sleep(0)
    assert study.started == [1, 2]
    work = await study.work()
    assert (names(work), work.want, work.leave) == (["a", "b"], ("a", "b"), ())
    await study.broker.tell(1, work.serial, {"a": {"step": 2}, "b": {"step": 2, "done": True}})
    assert (await first, await second) == ({"step": 2}, {"step": 2, "done": True})
    again = study.ask("a")
    work = await study.work(done=1)
    assert (work.leave, names(work), set(work.want)) == (("b",), ["c"], {"a", "c"})
    await study.broker.tell(1, work.serial, {"a": {"step": 4}, "c": ValueError("bad")})
    assert await again == {"step": 4}
    assert str(await third) == "bad"


@on_loop
async def test_a_pack_that_works_hears_of_others_at_once_and_an_idle_one_waits(
    folder: Path,
) -> None:
    slow = Waits(first=0.0, others=SOON, news=SOON)
    study = Study(folder, size=3, at_once=3, waits=slow)
    study.ask("a")
    await study.work()
    study.ask("b")
    joined = await study.work(done=1)
    assert names(joined) == ["b"]
    await study.broker.tell(1, 2, {"a": {"step": 2}, "b": {"step": 2}})
    study.ask("a")
    waiting = asyncio.ensure_future(study.work(done=2))
    await asyncio.sleep(0.1)
    assert not waiting.done(), "b will ask in a moment"
    study.ask("b")
    assert set((await waiting).want) == {"a", "b"}


@on_loop
async def test_other_data_waits_for_an_empty_pack(folder: Path) -> None:
    study = Study(folder, size=2, at_once=2)
    study.ask("a")
    other = study.ask("b", max_length=128)
    assert names(await study.work()) == ["a"]
    assert study.started == [1], "there are never more packs than trials need"
    await study.broker.leave("first", "a")
    work = await study.work(done=1)
    assert (work.leave, names(work)) == (("a",), [])
    assert names(await study.work(done=2)) == ["b"]
    assert not other.done()


@on_loop
async def test_what_other_data_leave_no_slot_for_gets_a_pack_of_its_own(folder: Path) -> None:
    study = Study(folder, size=2, at_once=4)
    study.ask("a")
    await study.work()
    study.ask("b")
    await asyncio.sleep(0)
    assert study.started == [1], "the pack has a slot left"
    study.ask("c", max_length=128)
    await asyncio.sleep(0)
    assert study.started == [1, 2]
    assert names(await study.work(2)) == ["c"]


@on_loop
async def test_a_trial_started_again_waits_until_its_former_pack_lets_it_go(folder: Path) -> None:
    study = Study(folder, size=2, at_once=4)
    lost = study.ask("a")
    study.ask("b")
    study.ask("c")
    await asyncio.sleep(0)
    first = await study.work(1)
    assert names(first) == ["a", "b"]
    assert names(await study.work(2)) == ["c"]
    again = study.ask("a", attempt="second")
    assert isinstance(await lost, RunFailedError)
    second = asyncio.ensure_future(study.work(2, 1))
    await asyncio.sleep(0.1)
    assert not second.done(), "two packs would write into one folder"
    await study.broker.tell(1, first.serial, {"a": {"step": 2}})
    assert not again.done(), "this was for its former attempt"
    let_go = await study.work(1, 1)
    assert let_go.leave == ("a",)
    assert not second.done()
    await study.broker.leave("first", "a")  # comes late, and is not about this attempt
    free = asyncio.ensure_future(study.work(1, 2))
    done, _ = await asyncio.wait({second, free}, return_when=asyncio.FIRST_COMPLETED, timeout=SOON)
    assert [names(one.result()) for one in done] == [["a"]]
    assert not again.done()
    free.cancel()


@on_loop
async def test_a_lost_pack_fails_its_members_and_the_others_go_on(folder: Path) -> None:
    study = Study(folder, size=2, at_once=3)
    lost = [study.ask("a"), study.ask("b")]
    waits = study.ask("c")
    await study.work(1)
    await study.broker.lost(1, "pack 1 is gone: killed")
    assert [str(one) for one in await asyncio.gather(*lost)] == ["pack 1 is gone: killed"] * 2
    assert [event.kind for event in read_events(folder / "a")] == ["lost"]
    assert not waits.done()
    study.ask("a", attempt="second")
    assert names(await study.work(2)) == ["c", "a"]
    assert (await study.work(1)).over, "a pack that is taken for lost trains nothing more"


@on_loop
async def test_a_pack_that_is_lost_before_it_works_costs_nobody_a_retry(folder: Path) -> None:
    study = Study(folder, size=2, at_once=2)
    waiting = [study.ask("a"), study.ask("b")]
    await asyncio.sleep(0)
    await study.broker.lost(1, "pack 1 is gone: its node died")
    assert study.started == [1, 2]
    assert not any(one.done() for one in waiting)
    assert names(await study.work(2)) == ["a", "b"]
    told = [(one.kind, one.message) for one in read_events(folder / "a")]
    assert told == [
        ("lost", "pack 1 is gone: its node died, before it asked for work (1 in a row)")
    ]


@on_loop
async def test_packs_that_cannot_start_are_not_started_for_ever(folder: Path) -> None:
    study = Study(folder, size=2, at_once=2)
    waiting = [study.ask("a"), study.ask("b")]
    await asyncio.sleep(0)
    for number in range(1, STARTS + 1):
        assert not any(one.done() for one in waiting)
        await study.broker.lost(number, f"pack {number} is gone: no such module")
    said = "pack 3 is gone: no such module, before it asked for work (3 in a row)"
    assert [str(one) for one in await asyncio.gather(*waiting)] == [said] * 2
    assert study.started == [1, 2, 3]
    again = study.ask("a", attempt="second")
    await asyncio.sleep(0)
    assert study.started == [1, 2, 3, 4]
    await study.broker.lost(4, "pack 4 is gone: no such module")
    assert "4 in a row" in str(await again), "who asks anew starts no further three"
    study.ask("a", attempt="third")
    await asyncio.sleep(0)
    assert names(await study.work(5)) == ["a"]
    await study.broker.leave("third", "a")
    await study.broker.lost(5, "pack 5 is gone: killed")
    waits = study.ask("b", attempt="second")
    await asyncio.sleep(0)
    await study.broker.lost(6, "pack 6 is gone: no such module")
    assert not waits.done(), "one has come since"


@on_loop
async def test_whom_nobody_asks_for_makes_room(folder: Path) -> None:
    study = Study(folder, size=1, at_once=1)
    study.ask("a")
    work = await study.work()
    await study.broker.tell(1, work.serial, {"a": {"step": 2}})
    study.ask("b")
    assert (await study.work(done=1)).leave == ("a",)
    assert names(await study.work(done=2)) == ["b"]


@on_loop
async def test_a_pack_without_members_ends_and_another_one_is_started(folder: Path) -> None:
    study = Study(folder, size=1, at_once=1)
    report = study.ask("a")
    work = await study.work()
    await study.broker.tell(1, work.serial, {"a": {"step": 2, "done": True}})
    await report
    assert (await study.work(done=1)).leave == ("a",)
    assert (await study.work(done=2)).over
    await study.broker.lost(1, "it had ended already")
    study.ask("b")
    await asyncio.sleep(0)
    assert study.started == [1, 2]


@on_loop
async def test_packs_start_before_the_first_trial_asks(folder: Path) -> None:
    study = Study(folder, size=2, at_once=3, waits=Waits(first=0.1))
    await study.broker.begin()
    assert study.started == [1, 2]
    asks = asyncio.ensure_future(study.work(2))
    await asyncio.sleep(0.05)
    study.ask("a")
    assert names(await asks) == ["a"]
    await study.broker.lost(1, "pack 1 is gone: no such module")
    assert study.started == [1, 2], "nobody waits for it"
    for name in "bc":
        study.ask(name)
    await asyncio.sleep(0)
    assert study.started == [1, 2, 3]


@on_loop
async def test_without_news_a_pack_hears_so(folder: Path) -> None:
    study = Study(folder, size=1, at_once=1, waits=Waits(news=0.05))
    study.ask("a")
    await study.work()
    assert await study.work(done=1) == Work()


@on_loop
async def test_at_the_end_packs_hear_that_it_is_over(folder: Path) -> None:
    study = Study(folder, size=2, at_once=2)
    asks = study.ask("a")
    await study.work()
    waiting = asyncio.ensure_future(study.work(done=1))
    await asyncio.sleep(0)
    await study.broker.close()
    assert (await waiting).over
    for late in (asks, study.ask("b")):
        with pytest.raises(RunFailedError, match="ended"):
            raise await late
