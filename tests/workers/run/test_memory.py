"""Free memory is what the container has, not what the host has."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from workers.run.memory import free_memory


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a million bytes."""
    free = psutil.virtual_memory()._replace(available=10**6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


def group(root: Path, path: str, texts: dict[str, str]) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")


def process(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def second(limit: object, used: int, cached: int) -> dict[str, str]:
    return {
        "memory.max": str(limit),
        "memory.current": str(used),
        "memory.stat": f"anon 5\ninactive_file {cached}",
    }


def first(limit: int, used: int, cached: int) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": str(limit),
        "memory.usage_in_bytes": str(used),
        "memory.stat": f"inactive_file 0\ntotal_inactive_file {cached}",
    }


def test_without_groups_it_is_the_hosts(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == 10**6


def test_a_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    process(tmp_path, "0::/")
    group(tmp_path, "", second("max", 500, 0))
    assert free_memory(tmp_path) == 10**6


def test_files_that_were_read_are_no_loss(tmp_path: Path) -> None:
    process(tmp_path, "0::/")
    group(tmp_path, "", second(1000, 900, 300))
    assert free_memory(tmp_path) == 400


def test_the_least_of_the_groups_above_counts(tmp_path: Path) -> None:
    process(tmp_path, "0::/pod/one")
    group(tmp_path, "pod", second(1000, 800, 0))
    group(tmp_path, "pod/one", second(900, 100, 0))
    assert free_memory(tmp_path) == 200


def test_the_first_version_has_a_tree_of_its_own(tmp_path: Path) -> None:
    process(tmp_path, "9:cpu,cpuacct:/elsewhere", "4:memory:/docker/1a", "0::/")
    group(tmp_path, "memory", first(2**63 - 4096, 100, 0))
    group(tmp_path, "memory/docker/1a", first(1000, 700, 50))
    group(tmp_path, "cpu,cpuacct/elsewhere", first(10, 0, 0))
    assert free_memory(tmp_path) == 350


def test_in_a_container_the_path_may_be_the_hosts(tmp_path: Path) -> None:
    process(tmp_path, "4:memory:/docker/1a")
    group(tmp_path, "memory", first(1000, 700, 0))
    assert free_memory(tmp_path) == 300


def test_more_used_than_allowed_is_nothing_left(tmp_path: Path) -> None:
    process(tmp_path, "0::/")
    group(tmp_path, "", second(1000, 1100, 0))
    assert free_memory(tmp_path) == 0
