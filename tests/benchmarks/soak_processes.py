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
        second fifth, medians."""
        longest: dict[str, list[int]] = {}
        for pid, sizes in self._sizes.items():
            kind = self._kinds[pid]
            if len(sizes) > len(longest.get(kind, [])):
                longest[kind] = sizes
        return {
            kind: statistics.median(s[-max(1, len(s) // 5) :])
            / statistics.median(s[len(s) // 5 : max(len(s) // 5 + 1, 2 * len(s) // 5)])
            for kind, s in longest.items()
        }
