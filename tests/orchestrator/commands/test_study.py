"""`moetune check` beside a cluster and without one; `moetune leaderboard`."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.session import Session
from orchestrator.cli import app
from orchestrator.config.job import JobSpec, override_job
from tests.orchestrator.conftest import Play
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


def test_a_job_is_told_with_its_epochs_and_memory() -> None:
    done = _check("--set", "data.validation.share=0.3")
    assert done.exit_code == 0, done.stderr
    lines = done.stderr.splitlines()
    assert any(
        line.startswith("a share of 0.3 of ") and " rows, none is cut" in line for line in lines
    )
    (epoch,) = [line for line in lines if line.startswith("an epoch is ")]
    assert "8 steps are" in epoch
    assert "padding is" in epoch
    (memory,) = [line for line in lines if line.startswith("a worker holds about ")]
    for part in ("base", "adapter", "gradients", "optimizer", "activations", "logits", "estimate"):
        assert part in memory
    assert not [line for line in lines if "training rows too" in line or "measured" in line]


def test_the_same_in_json() -> None:
    done = _check("--json", "--measure")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    facts = {"epoch", "steps", "memory", "pack", "earlier", "same_rows", "measured"}
    assert {"job", "data", "remarks", "unseen_tokens", *facts} == told.keys()
    assert told["memory"]["dtype"] == "float32"
    apart = ("trial", "dtype")
    parts = {name: size for name, size in told["memory"].items() if name not in apart}
    assert parts.pop("total") == sum(parts.values())
    assert told["measured"]["usual"]["seconds"] > 0
    assert told["same_rows"] is None
    assert 0 <= told["epoch"]["padding_share"] < 1


def _leaderboard(job: JobSpec, *options: str) -> str:
    words = ("leaderboard", "home", "--storage", job.cluster.storage)
    done = CliRunner().invoke(app, [*words, *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_leaderboard_says_which_trial_ended_early(job: JobSpec, play: Play) -> None:
    play(job, ["early"])
    (row,) = json.loads(_leaderboard(job, "--json"))
    assert (row["best_step"], row["stopped_early"], row["steps"]) == (20, True, 30)
    assert "stopped early; its best was at step 20" in " ".join(_leaderboard(job).split())


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "moetune export writes MixtralForCausalLM"),
        ({"adapter.routing": "top_p"}, "no export as an ordinary checkpoint: routing: top_p"),
    ],
    ids=["can", "cannot"],
)
def test_a_leaderboard_says_what_can_be_exported(
    space: dict[str, Any],
    said: str,
    job: JobSpec,
    play: Play,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOETUNE_STORE", store)
    base = tmp_path / "base"
    varied = {"adapter.num_experts": {"choice": [4, 8]}, "optimizer.lr": {"log": [1e-4, 1e-2]}}
    fields = {"search.space": varied | space, "train.model.path": str(base)}
    job = override_job(job, fields, "test")
    play(job, ["finished", "failed", "finished", "cut"])
    assert "export" not in _leaderboard(job), "the base is not here"
    assert {row["export"] for row in json.loads(_leaderboard(job, "--json"))} == {None}
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    lines = [line for line in _leaderboard(job).splitlines() if "export" in line]
    assert len(lines) == 1, "one line for trials of the same answer"
    assert lines[0].startswith(f"trials 0, 2: {said}")
    rows = {row["number"]: row["export"] for row in json.loads(_leaderboard(job, "--json"))}
    assert rows[1] is rows[3] is None
    assert rows[0] == rows[2]
    assert (rows[0]["architecture"] is None) == ("no export" in said)
