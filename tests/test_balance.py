"""Two processes have a cluster, the longest shares come first, and ids stay what they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLUSTER = """
import os, pytest
from pathlib import Path
@pytest.fixture
def ray_cluster(): ...
def note(): Path(__file__).with_suffix(f".{os.getpid()}").touch()
def test_with_it(ray_cluster): note()
def test_beside_it(): note()
"""
OTHER = """
import time
def test_some(): time.sleep(0.2)
"""


@pytest.mark.usefixtures("processes")
def test_two_processes_have_a_cluster_and_durations_are_kept(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"test_cluster_{name}.py").write_text(CLUSTER)
        (tmp_path / f"test_other_{name}.py").write_text(OTHER)
    options = ["-p", "tests.tiers", "-p", "tests.balance", "-n3", "--dist=loadgroup", "-rA"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "test_cluster_a.py::test_with_it\n" in done.stdout
    ran = {path.suffix for path in tmp_path.glob("test_cluster_*.*[0-9]")}
    assert len(ran) == 2, "two of the three had all of them"
    assert "@" not in done.stdout
    kept = json.loads((tmp_path / ".pytest_cache" / "v" / "moetune" / "durations").read_text())
    assert len(kept) == 12
    assert kept["test_other_b.py::test_some"] >= 0.2
