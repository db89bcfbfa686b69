"""Looks at a machine and a cluster, and says what would keep moetune from running."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import ClusterError
from orchestrator.doctor.requirements import installed_here, unmet
from workers.run.folders import nearest

if TYPE_CHECKING:
    from orchestrator.doctor.nodes import NodeReport

PYTHON = (3, 11)
DISK_BYTES = 2 * 2**30
MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def checks(address: str | None, storage: str | Path) -> list[Check]:
    """All checks of this machine, and of the cluster at `address` if there is one given."""
    looks: list[Callable[[], Check]] = [
        _python,
        _packages,
        _devices,
        _processors,
        lambda: _storage(Path(storage)),
        _loopback,
    ]
    results = [_guarded(look) for look in looks]
    return results + (list(_cluster(address)) if address else [])


def _guarded(look: Callable[[], Check]) -> Check:
    """A look that fails is a finding, not a crash."""
    try:
        return look()
    except Exception as error:
        name = getattr(look, "__name__", "check").strip("_")
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, PYTHON))
    return Check("python", sys.version_info[:2] >= PYTHON, f"{version} (wanted: {wanted} or later)")


def _packages() -> Check:
    versions = installed_here()
    wrong = unmet(versions)
    said = f"{len(versions)} as wanted; torch {versions.get('torch')}, ray {versions.get('ray')}"
    return Check("packages", not wrong, "; ".join(wrong) or said)


def _devices() -> Check:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return Check("devices", True, counted or f"no GPU; CPU with {torch.get_num_threads()} threads")


def _processors() -> Check:
    from workers.run.memory import free_memory

    free = free_memory()
    detail = f"{os.cpu_count()} cores, {_gib(free)} of memory free (wanted: {_gib(MEMORY_BYTES)})"
    return Check("memory", free >= MEMORY_BYTES, detail)


def _storage(path: Path) -> Check:
    """Writable, or can be made; with room."""
    try:
        place = nearest(path)
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        return Check("storage", False, f"{path}: cannot be written: {error.strerror}")
    detail = f"{path.resolve()}: {_gib(free)} free (wanted: {_gib(DISK_BYTES)})"
    return Check("storage", free >= DISK_BYTES, detail)


def _loopback() -> Check:
    """A local cluster and the endpoint listen on 127.0.0.1."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        with socket.create_connection(address, 3):
            return Check("loopback", True, "ports can be opened on 127.0.0.1 and reached")


def _cluster(address: str) -> Iterator[Check]:
    """Reach, authentication, jobs, and each kind of node, each by its own line."""
    from cluster.handshake import reach
    from cluster.jobs import JobClient
    from orchestrator.doctor.nodes import probe

    try:
        yield Check("cluster", True, reach(address))
    except ClusterError as error:
        yield Check("cluster", False, str(error))
        return
    try:
        client = JobClient(address)
        yield Check("jobs", True, f"{len(client.list())} jobs at {client.dashboard_url}")
    except ClusterError as error:
        yield Check("jobs", False, str(error))
        return
    try:
        yield from _nodes(probe(client))
    except ClusterError as error:
        yield Check("nodes", False, str(error))


def _nodes(reports: "Sequence[NodeReport]") -> Iterator[Check]:
    """One line for each kind of node; and one where none of them has a CPU."""
    alike: dict[tuple[str, bool], list[str]] = {}
    for one in reports:
        faults = "; ".join(one.faults)
        alike.setdefault((faults or str(one), not faults), []).append(one.host)
    for (detail, ok), hosts in alike.items():
        others = f" and {len(hosts) - 1} alike" if len(hosts) > 1 else ""
        yield Check(f"node {hosts[0]}{others}", ok, detail)
    if not any(one.cpus for one in reports):
        yield Check("room", False, "no node has a CPU, and none came that has")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
