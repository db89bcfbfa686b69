"""How the cases are shared out between pytest-xdist's processes, by `--dist loadgroup`.

A file is a share. Files with a case of the cluster go to two of the processes, which begin with
them: each has a cluster of its own, and the others have none. The shares that took longest in the
last run are begun first; what they took is kept in pytest's cache.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

CLUSTER = "ray_cluster"
CLUSTERS = 2
"""Processes that have a cluster. One alone waits for half of its time, and ends minutes after the
others; a cluster starts in eight seconds, and idle takes a twentieth of a core."""
KEPT = "moetune/durations"
"""Where pytest's cache keeps the seconds of each case."""
GUESS = {CLUSTER: 20.0, '"benchmark"': 20.0, '"processes"': 10.0, "chromium": 4.0}
"""Seconds for each time that a file names this, where none of its cases has been run here."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Share out as this page says."""
    return LongestFirst(config, log) if config.getvalue("dist") == "loadgroup" else None


class LongestFirst(LoadScopeScheduling):
    """Gives the longest of the shares that are left for whoever asks."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        self._seconds, self._texts = seconds(config), Texts(config.rootpath)
        self._with_cluster: set[WorkerController] = set()

    def remove_node(self, node: WorkerController) -> str | None:
        """Whoever takes its place may have its cluster."""
        self._with_cluster.discard(node)
        return super().remove_node(node)

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def _reschedule(self, node: WorkerController) -> None:
        if node.shutting_down or self._left_for(node):
            super()._reschedule(node)
        else:
            node.shutdown()

    def _assign_work_unit(self, node: WorkerController) -> None:
        if shares := self._left_for(node):
            longest = max(shares, key=self._length)
            if self._wants_cluster(longest):
                self._with_cluster.add(node)
            self.workqueue.move_to_end(longest, last=False)
            super()._assign_work_unit(node)

    def _left_for(self, node: WorkerController) -> list[str]:
        clustered = [share for share in self.workqueue if self._wants_cluster(share)]
        if node in self._with_cluster or len(self._with_cluster) < CLUSTERS:
            return clustered or list(self.workqueue)
        return [share for share in self.workqueue if share not in clustered]

    def _wants_cluster(self, share: str) -> bool:
        return CLUSTER in self._texts[share]

    def _length(self, share: str) -> float:
        guesses = (each * self._texts[share].count(name) for name, each in GUESS.items())
        return sum(self._seconds.get(case, 0.0) for case in self.workqueue[share]) or sum(guesses)


class Texts(dict[str, str]):
    """What the files hold, each read once. Which fixtures the cases take is not known here, where
    nothing is collected; a file that uses the cluster names it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __missing__(self, file: str) -> str:
        self[file] = (self._root / file).read_text()
        return self[file]


def seconds(config: pytest.Config) -> dict[str, float]:
    """What each case took when it was last run here."""
    cache = cache_of(config)
    return cache.get(KEPT, {}) if cache else {}


def cache_of(config: pytest.Config) -> pytest.Cache | None:
    """None where pytest is told to keep none."""
    return getattr(config, "cache", None)


class Durations:
    """Notes what the cases take."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._taken: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase has ended."""
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
