"""Gauges that are set again and again, until nobody wants it any more."""

import asyncio
import gc
import logging
import threading
from collections.abc import Callable

import pytest

from orchestrator.telemetry.refresh import Refresh, keep_showing

SOON = 0.01


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "metrics"}


class Shows:
    """Counts how often it is asked to show."""

    def __init__(self, fails: int = 0) -> None:
        self.times, self._fails = 0, fails
        self._asked = threading.Semaphore(0)

    def __call__(self) -> None:
        self.times += 1
        self._asked.release()
        if self.times <= self._fails:
            raise ValueError("no figures yet")

    def wait(self, times: int) -> None:
        for _ in range(times):
            self._asked.acquire()


@pytest.fixture
def ends() -> Callable[[], None]:
    """Waits until the threads that the test began have ended."""
    before = threads()

    def wait() -> None:
        for thread in threads() - before:
            thread.join()

    return wait


@pytest.mark.timeout(60)
def test_it_shows_until_it_is_ended(ends: Callable[[], None]) -> None:
    show = Shows()
    refresh = Refresh(show, seconds=SOON)
    show.wait(3)
    refresh.end()
    ends()


@pytest.mark.timeout(60)
def test_it_shows_for_as_long_as_its_owner_is_there(ends: Callable[[], None]) -> None:
    class Engine:
        pass

    engine, show = Engine(), Shows()
    Refresh(show, engine, seconds=SOON)
    show.wait(3)
    del engine
    gc.collect()
    ends()


@pytest.mark.timeout(60)
def test_what_cannot_be_shown_now_is_said_and_shown_later(
    ends: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    show = Shows(fails=2)
    with caplog.at_level(logging.ERROR):
        refresh = Refresh(show, seconds=SOON)
        show.wait(4)
        refresh.end()
        ends()
    assert caplog.messages == ["metrics were not set"] * 2


@pytest.mark.timeout(60)
def test_a_task_shows_until_it_is_cancelled(
    ends: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Shows()

    async def show_for_a_while() -> None:
        task = asyncio.create_task(keep_showing(show, seconds=SOON))
        await asyncio.to_thread(show.wait, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(show_for_a_while())
    ends()
