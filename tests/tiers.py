"""The tier of a case: what it needs beside this process, told by the fixtures that it takes.

A case of no tier needs nothing more: `make check` runs these. They are watched, so that none of
them starts a process unnoticed; what multiprocessing spawns tells Python's audit nothing, and
tests/architecture/test_tiers.py finds it in the code.
"""

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TIERS = {
    "ray_cluster": "cluster",
    "processes": "process",
    "postgres": "postgres",
    "benchmark": "benchmark",
    "chromium": "browser",
}
"""The marker that a fixture brings to each case that takes it, itself or through another one."""
UNWATCHED = {*TIERS.values(), "endurance"}
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""Python's audit events of a process that is started."""
LIGHT = {"gcc", "cc", "ld", "ldconfig", "uname", "which", "lscpu"}
"""Programs of milliseconds that packages ask about the machine, mostly while they are imported."""
LIGHT_MODULE = "workers.engine.structured_output.probe_process"
"""What an engine starts at its first schema, of a quarter of a second: a part of the engine."""


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a case as soon as it is there, before `-m` chooses."""
    for fixture in TIERS.keys() & set(getattr(item, "fixturenames", ())):
        item.add_marker(TIERS[fixture])


class ProcessWatch:
    """Fails a case of no tier in the phase in which it starts a process."""

    def __init__(self) -> None:
        self._started: list[str] | None = None
        sys.addaudithook(self._note)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Its fixtures are watched,"""
        with self._watched(item):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """and itself."""
        with self._watched(item):
            return (yield)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._started is not None and event in STARTS:
            words = [str(one) for one in arguments[1]] if event == "subprocess.Popen" else [event]
            if Path(words[0]).name not in LIGHT and LIGHT_MODULE not in words:
                self._started.append(" ".join(words))

    @contextmanager
    def _watched(self, item: pytest.Item) -> Iterator[None]:
        if any(mark.name in UNWATCHED for mark in item.iter_markers()):
            yield
            return
        self._started = started = []
        try:
            yield
        finally:
            self._started = None
        if started:
            pytest.fail(
                f"{item.nodeid} starts a process and takes no fixture that says so, one of "
                f"{', '.join(TIERS)}: {started[0][:200]}",
                pytrace=False,
            )


def pytest_configure(config: pytest.Config) -> None:
    """Watch the processes of this run."""
    config.pluginmanager.register(ProcessWatch(), "process-watch")
