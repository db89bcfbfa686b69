"""Trainings as jobs of a real cluster: begun under their study's name, followed to their end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.jobs import JobClient
from cluster.session import Session
from orchestrator.config.job import JobSpec
from orchestrator.retraining.backends import ClusterRuns, HereRuns
from workers.config.train import TrainSpec


def test_a_training_on_a_cluster_is_followed_to_its_end(
    ray_cluster: Session, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    train: dict[str, Any] = make_spec(data__train=str(tmp_path / "gone.jsonl")).model_dump()
    job = JobSpec.model_validate(
        {
            "name": "tiny-20261122T080000",
            "train": train,
            "search": {"space": "smoke", "trials": 1},
            "cluster": {"storage": str(tmp_path / "runs")},
        }
    )
    runs = ClusterRuns(JobClient(ray_cluster.dashboard_url or ""))
    unknown = runs.end(job.name)
    assert unknown is not None
    assert "no such job" in (unknown.failed or "")
    runs.start(job)
    deadline = time.monotonic() + 120
    while (end := runs.end(job.name)) is None:
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.5)
    assert end.failed, "its rows are gone, so it cannot have trained"


def test_what_ran_here_has_ended_with_its_process() -> None:
    end = HereRuns().end("tiny-20261122T080000")
    assert end is not None
    assert end.failed is None, "its study says what came of it"
