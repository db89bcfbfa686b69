"""The soak's processes: who they are, how much memory they hold, and their end."""

import os
import signal
import statistics
from collections import defaultdict

import psutil
from ray.util.state import list_actors

ENGINE, OTHERS = "Engine", ("Gateway", "ProxyActor", "ServeController")


def actors() -> dict[int, str]:
    """Living actors of Ray Serve by process id: what they are."""
    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
    found = {}
    for actor in alive:
        for kind in (ENGINE, *OTHERS):
            if kind in (actor.name or "") or kind in actor.class_name:
                found[actor.pid] = kind
    return found


def engines() -> list[int]:
    """Processes of the engine's replicas, the one that has lived longest first."""
    pids = [pid for pid, kind in actors().items() if kind == ENGINE and psutil.pid_exists(pid)]
    return sorted(pids, key=lambda pid: psutil.Process(pid).create_time())


def kill(pid: int) -> None:
    """As the kernel does it when memory runs out."""
    os.kill(pid, signal.SIGKILL)


class Memory:
    """Resident sizes over time."""

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        self._sizes: defaultdict[int, list[int]] = defaultdict(list)

    def measure(self) -> None:
        """Note what every process holds now."""
        for pid, kind in actors().items():
            try:
                self._sizes[pid].append(psutil.Process(pid).memory_info().rss)
            except psutil.NoSuchProcess:
                continue
            self._kinds[pid] = kind

    def growth(self) -> dict[str, float]:
        """Of the process that was seen longest of each kind: the last fifth of its time over the
        second fifth, medians. The first fifth is a process's start: threads, caches and what is
        imported late."""
        return {kind: _part(s, 4, 5) / _part(s, 1, 5) for kind, s in self._longest().items()}

    def curves(self) -> dict[str, list[int]]:
        """Of the same processes: MiB in each tenth of their time, medians. What grows without an
        end is told from what fills up once by their shape."""
        return {
            kind: [round(_part(sizes, tenth, 10) / 2**20) for tenth in range(10)]
            for kind, sizes in self._longest().items()
        }

    def _longest(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for pid, sizes in self._sizes.items():
            kind = self._kinds[pid]
            if len(sizes) > len(found.get(kind, [])):
                found[kind] = sizes
        return found


def _part(sizes: list[int], number: int, parts: int) -> float:
    """The median of one of so many parts."""
    first, end = (len(sizes) * n // parts for n in (number, number + 1))
    return statistics.median(sizes[first : max(end, first + 1)])
