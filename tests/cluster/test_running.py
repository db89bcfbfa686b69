"""The folders of local clusters belong to their owners while these live."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import lock_descriptor

from cluster.running import LocalCluster, abandoned, claimed, running

OWNER = """
import sys, time
from pathlib import Path
from cluster import running
running._home = lambda: Path(sys.argv[1])
with running.claimed() as cluster:
    cluster.ray_folder.mkdir()
    (cluster.ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")
    print(cluster.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cluster.running._home", lambda: tmp_path)
    return tmp_path


def _up(cluster: LocalCluster) -> LocalCluster:
    cluster.ray_folder.mkdir()
    (cluster.ray_folder / "ray_current_cluster").write_text("127.0.0.1:2")
    return cluster


def test_a_cluster_is_there_while_its_owner_is(home: Path) -> None:
    assert running() == []
    with claimed() as cluster:
        assert running() == [], "it is not up yet"
        assert [_up(cluster)] == running()
        assert abandoned() == []
    assert running() == []
    assert not cluster.folder.exists()


def test_the_cluster_of_a_killed_owner_is_not_there(
    home: Path, processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask at once: who tries a lock keeps it from the others for a moment."""

    def slow(handle: int, *, blocking: bool = True) -> bool:
        taken = lock_descriptor(handle, blocking=blocking)
        time.sleep(0.005)
        return taken

    monkeypatch.setattr("cluster.running.lock_descriptor", slow)
    command = [sys.executable, "-c", OWNER, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            lost = LocalCluster(Path(owner.stdout.readline().strip()))
            assert running() == [lost]
        finally:
            owner.kill()
    with ThreadPoolExecutor(8) as asking:
        assert [*asking.map(lambda _: running(), range(16))] == [[]] * 16
    assert abandoned() == [lost.folder]
    with claimed() as cluster:
        assert not lost.folder.exists()
        assert abandoned() == []
        assert [_up(cluster)] == running()
