"""How much memory this process can still take: of the machine, and of its container. No torch."""

from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""What the two versions of control groups call the limit, what is used, and what of this holds
files that were read, which the kernel gives back."""


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free on the machine, or in a control group that this process is in, if that
    is less: beyond it the kernel kills. `root` is where /proc and /sys lie."""
    left = [some for group in _groups(root) if (some := _left(group)) is not None]
    return min([int(psutil.virtual_memory().available), *left])


def _groups(root: Path) -> Iterator[Path]:
    """The process's own group and those above it, each of which may have a limit. In a container
    the path may be the host's; then the top is the container's."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        own = top / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _left(group: Path) -> int | None:
    for limit, used, cached in _NAMES:
        try:
            most, now = (int((group / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return max(0, most - now + int(stat.get(cached, 0)))
    return None
