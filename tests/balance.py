"""How the cases are shared out between pytest-xdist's processes, by `--dist loadgroup`.

Files with a case of the shared cluster are one share, so that only one process has a cluster. Every
other file is a share. The shares that took longest in the last run are begun first; what they took
is kept in pytest's cache.
"""

from collections import defaultdict

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.tiers import TIERS

CLUSTER = TIERS["ray_cluster"]
KEPT = "moetune/durations"
"""Where pytest's cache keeps the seconds of each case."""
GUESS = {CLUSTER: 30.0, "process": 5.0}
"""Seconds of a case that was never run here, by its share's kind; of any other, none."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the kind of each share, by the tiers of its cases, before pytest-xdist reads it."""
    tiers = defaultdict(set)
    for item in items:
        tiers[item.path] |= {mark.name for mark in item.iter_markers()} & {*TIERS.values()}
    for item in items:
        if found := tiers[item.path]:
            kind = CLUSTER if CLUSTER in found else "process"
            item.add_marker(pytest.mark.xdist_group(kind))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> LoadScopeScheduling | None:
    """Share out as this page says."""
    return LongestFirst(config) if config.getvalue("dist") == "loadgroup" else None


class LongestFirst(LoadScopeScheduling):
    """Gives the longest of the shares that are left to whoever asks."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config)
        self._seconds = seconds(config)

    def _split_scope(self, nodeid: str) -> str:
        name, kind = split(nodeid)
        return CLUSTER if kind == CLUSTER else name.partition("::")[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        longest = max(self.workqueue, key=self._length)
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)

    def _length(self, share: str) -> float:
        cases = map(split, self.workqueue[share])
        return sum(self._seconds.get(name, GUESS.get(kind, 0.0)) for name, kind in cases)


def split(nodeid: str) -> tuple[str, str]:
    """A case's id and the kind of its share, which pytest-xdist writes behind it."""
    name, at, kind = nodeid.rpartition("@")
    return (name, kind) if at and kind in GUESS else (nodeid, "")


def seconds(config: pytest.Config) -> dict[str, float]:
    """What each case took when it was last run here."""
    cache = cache_of(config)
    return cache.get(KEPT, {}) if cache else {}


def cache_of(config: pytest.Config) -> pytest.Cache | None:
    """None where pytest is told to keep none."""
    return getattr(config, "cache", None)


class Durations:
    """Notes what the cases take, and calls them by their own ids again."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._taken: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase has ended."""
        report.nodeid = split(report.nodeid)[0]
        self._taken[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Keep them for the next run."""
        if cache := cache_of(self._config):
            rounded = {name: round(taken, 3) for name, taken in self._taken.items()}
            cache.set(KEPT, seconds(self._config) | rounded)


def pytest_configure(config: pytest.Config) -> None:
    """Note them once: in the process that shares out, or in the only one."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations(config), "durations-of-cases")
