"""The doctor on this machine, on sick storage, and on clusters that are there and are not."""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.jobs import JobClient
from cluster.session import Session
from orchestrator.doctor.doctor import Check, _nodes, checks
from orchestrator.doctor.nodes import NodeReport
from orchestrator.doctor.requirements import installed_here

ROOT = Path(__file__).resolve().parents[3]


def _by_name(results: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in results}


def test_finds_this_machine_fit(tmp_path: Path) -> None:
    results = checks(None, tmp_path / "not" / "there" / "yet")
    found = _by_name(results)
    assert list(found) == ["python", "packages", "devices", "memory", "storage", "loopback"]
    for name in ("python", "packages", "devices", "storage", "loopback"):
        assert found[name].ok, found[name]
    assert "torch" in found["packages"].detail
    assert not list(tmp_path.iterdir()), "looking changes nothing"
    assert json.loads(json.dumps([asdict(check) for check in results]))[0]["name"] == "python"


@pytest.mark.parametrize("place", ["a file", "a file/below", "/proc/nothing"])
def test_finds_unusable_storage(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    storage = _by_name(checks(None, tmp_path / place))["storage"]
    assert not storage.ok
    assert "cannot be written" in storage.detail


def test_finds_no_cluster() -> None:
    found = _by_name(checks("127.0.0.1:1", "."))
    assert not found["cluster"].ok
    assert "no cluster can be reached" in found["cluster"].detail
    assert "jobs" not in found


def test_finds_a_cluster_by_either_address(ray_cluster: Session) -> None:
    before = [job.id for job in JobClient(ray_cluster.address).list()]
    for address in (ray_cluster.address, ray_cluster.dashboard_url):
        found = _by_name(checks(address, "."))
        assert found["cluster"].ok, found["cluster"]
        assert ray_cluster.address in found["cluster"].detail
        assert found["jobs"].ok, found["jobs"]
        assert str(ray_cluster.dashboard_url) in found["jobs"].detail
        node = found["node 127.0.0.1"]
        assert node.ok, node
        assert f"Python {platform.python_version()}, torch " in node.detail
        assert "4 CPUs, 0 GPUs" in node.detail
        assert "room" not in found
    after = [job.id for job in JobClient(ray_cluster.address).list()]
    assert after == before, "its jobs are gone"


def test_nodes_alike_are_one_line_and_none_has_a_cpu() -> None:
    bad = NodeReport(host="c", cpus=0, gpus=0, failed="no answer")
    good = NodeReport(host="a", cpus=0, gpus=0, packages=installed_here())
    told = list(_nodes([good, bad, good.model_copy(update={"host": "b"})]))
    assert [(one.name, one.ok) for one in told] == [
        ("node a and 1 alike", True),
        ("node c", False),
        ("room", False),
    ]


LEAN = """
import sys
from cluster.session import session
with session(num_cpus=1, num_gpus=1) as s:
    print(s.address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lean_cluster(tmp_path: Path, processes: None) -> Iterator[str]:
    """The address of a cluster whose Python has all that ours has, but for transformers and us."""
    venv.create(tmp_path / "lean", symlinks=True)
    places = sysconfig.get_paths(vars={"base": str(tmp_path / "lean")})
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("transformers", "moetune", "__editable__")):
            (Path(places["purelib"]) / path.name).symlink_to(path)
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    python = tmp_path / "lean" / "bin" / "python"
    with subprocess.Popen(
        [python, "-c", LEAN],
        cwd=ROOT,
        env=outer,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        yield owner.stdout.readline().strip()
        owner.stdin.close()


@pytest.mark.usefixtures("processes")
def test_a_cluster_that_can_run_nothing_is_found_out(lean_cluster: str, tmp_path: Path) -> None:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = ["doctor", "--address", lean_cluster, "--storage", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *command],
        cwd=ROOT,
        env=outer,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["jobs"]["ok"]
    node = found["node 127.0.0.1"]
    assert not node["ok"]
    for part in (
        "transformers is missing (wanted: ",
        "workers.train.ray_worker cannot be imported: ModuleNotFoundError: No module named",
        f"install them for {tmp_path}/lean/bin/python",
        "Ray counts 1 GPUs, torch",
    ):
        assert part in node["detail"]
