"""`moetune check` beside a cluster and without one."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.session import Session
from orchestrator.cli import app
from workers.config.base import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def _check(*options: str) -> Result:
    return CliRunner().invoke(app, ["check", "smoke", *options])


def test_a_job_is_compared_with_the_cluster_by_either_address(ray_cluster: Session) -> None:
    for address in (ray_cluster.address, str(ray_cluster.dashboard_url)):
        done = _check("--address", address, "--set", "search.max_concurrent=2")
        assert done.exit_code == 0, done.stderr
        assert "a trial wants 1 worker of 1 CPU; the cluster has 1 node, 4 CPUs" in done.stderr
        assert "room for 2 at a time" in done.stderr
        assert '"address": null' in done.stdout, "the job is as it was"
    done = _check("--address", ray_cluster.address, "--set", "search.gpus_per_worker=1")
    assert isinstance(done.exception, InputError)
    assert str(done.exception).endswith("1 node, 4 CPUs, 0 GPUs, and does not grow")


def test_without_a_cluster_a_large_job_is_only_remarked_on() -> None:
    done = _check("--set", "search.cpus_per_worker=4096", "--set", "search.gpus_per_worker=64")
    assert done.exit_code == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("a trial wants")]
    assert "1 worker of 4096 CPUs and 64 GPUs; this machine has 1 node" in said
    assert said.endswith("a cluster is looked at by check --address")
    assert "a trial wants" not in _check().stderr
