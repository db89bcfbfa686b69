"""`moetune train`: one run, promoted, trained on from its name, and sent to a cluster."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.session import Session
from tests.end_to_end.conftest import Run

Read = Callable[..., Any]


@pytest.fixture(scope="module")
def at(ray_cluster: Session) -> tuple[str, str]:
    """The option that names the cluster."""
    return "--address", ray_cluster.address


@pytest.fixture(scope="module")
def first(moetune: Run, at: tuple[str, str]) -> str:
    """What the first run has said."""
    return moetune("train", "job.yaml", "--set", "name=first", *at).stdout


def test_a_run_is_a_study_of_one_trial(first: str, moetune: Run, read: Read) -> None:
    assert "promote it with: moetune promote first --to NAME" in first
    (row,) = read("leaderboard", "first")
    assert (row["state"], row["params"], row["steps"]) == ("finished", {}, 6)
    page = Path(read("report", "first")["report"]).name
    assert page == "report.html"
    again = moetune("train", "job.yaml", "--set", "name=first", code=2)
    assert "study first: exists already in runs" in again.stderr


def test_a_version_is_trained_on_and_its_shape_kept(
    first: str, moetune: Run, read: Read, workspace: Path, at: tuple[str, str]
) -> None:
    moetune("promote", "first", "--to", "paint")
    before = read("leaderboard", "first")[0]
    other = ("--set", "name=second", "--set", "optimizer.steps=3", "--set", "adapter.rank=8")
    refused = moetune("train", "job.yaml", *other, "--from", "paint", code=2)
    assert "cannot be trained on as adapter.rank 8: it has 4" in refused.stderr
    assert not (workspace / "runs" / "studies" / "second").exists()
    moetune("train", "job.yaml", *other[:-2], "--from", "paint", *at)
    (row,) = read("leaderboard", "second")
    assert row["value"] < before["value"], "it begins where the first one ended"
    job = json.loads((workspace / "runs" / "studies" / "second" / "job.json").read_text())
    assert Path(job["train"]["start_from"]).name.startswith(before["version"])


def test_a_run_is_sent_to_a_cluster(moetune: Run, read: Read, ray_cluster: Session) -> None:
    assert ray_cluster.dashboard_url
    there = ("--address", ray_cluster.dashboard_url)
    refused = moetune("train", "job.yaml", "--detach", code=2)
    assert "train --detach: needs --address" in refused.stderr
    job = read("train", "job.yaml", "--set", "name=sent", "--detach", *there)
    assert job["study"] == "sent"
    assert "trial 0 · finished" in moetune("logs", job["id"], "--follow", *there).stdout
    (row,) = read("leaderboard", "sent")
    assert (row["state"], row["params"]) == ("finished", {})


@pytest.mark.usefixtures("first")
def test_what_it_is_to_begin_with_must_be_there(moetune: Run) -> None:
    for what, said in (
        ("nobody", "nobody: nothing was promoted to this name"),
        ("./nowhere", "nowhere: there is no such adapter folder"),
    ):
        done = moetune("train", "job.yaml", "--set", "name=none", "--from", what, code=2)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
