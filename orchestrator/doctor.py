"""Looks at a machine and a cluster, and says what would keep moetune from running."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cluster.errors import ClusterError

PYTHON = (3, 11)
DISK_BYTES = 2 * 2**30
MEMORY_BYTES = 4 * 2**30
_DISTRIBUTION = "moetune"


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
    from packaging.requirements import Requirement

    wrong = []
    required = [Requirement(line) for line in metadata.requires(_DISTRIBUTION) or ()]
    needed = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        try:
            found = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing (wanted: {one.specifier})")
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found} (wanted: {one.specifier})")
    versions = f"torch {metadata.version('torch')}, ray {metadata.version('ray')}"
    return Check("packages", not wrong, "; ".join(wrong) or f"{len(needed)} as wanted; {versions}")


def _devices() -> Check:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return Check("devices", True, counted or f"no GPU; CPU with {torch.get_num_threads()} threads")


def _processors() -> Check:
    import psutil  # type: ignore[import-untyped]

    free = psutil.virtual_memory().available
    detail = f"{os.cpu_count()} cores, {_gib(free)} of memory free (wanted: {_gib(MEMORY_BYTES)})"
    return Check("memory", free >= MEMORY_BYTES, detail)


def _storage(path: Path) -> Check:
    """Writable, or can be made; with room."""
    try:
        place = path.resolve()
        while not place.exists():
            place = place.parent
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
    """Reach, authentication and jobs, each by its own line."""
    from cluster.handshake import reach
    from cluster.jobs import JobClient

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


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
