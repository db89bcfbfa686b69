"""How many steps a job's trials make, before they say so."""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import JobSpec, override_job
from orchestrator.tuning.preflight import preflight
from orchestrator.tuning.run_length import most_steps
from workers.config.base import InputError
from workers.config.train import TrainSpec


@pytest.fixture
def job(make_spec: Callable[..., TrainSpec], tmp_path: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "train": make_spec().model_dump(),
            "search": {"space": {"adapter.rank": 4}},
            "cluster": {"storage": str(tmp_path / "runs")},
        }
    )


def spaced(job: JobSpec, space: dict[str, Any], **changes: Any) -> JobSpec:
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    return override_job(job, {**changes, "search.space": space}, "test")


def test_the_most_that_a_trial_may_make(job: JobSpec, rows_file: Path) -> None:
    rows = preflight(job)["train"].rows
    an_epoch = ceil(rows / 8)
    assert most_steps(job) == 4
    assert most_steps(spaced(job, {"optimizer.steps": {"choice": [3, 80]}})) == 80
    assert most_steps(override_job(job, {"optimizer.epochs": 3}, "test")) == 3 * an_epoch
    epochs = {"choice": [1, 5]}
    assert most_steps(spaced(job, {"optimizer.epochs": epochs})) == 5 * an_epoch
    both = {"optimizer.epochs": epochs, "optimizer.batch_size": {"choice": [2, 8]}}
    assert most_steps(spaced(job, both)) == 5 * ceil(rows / 2)
    three = {
        **both,
        "data.train": {"choice": [str(rows_file), [{"source": str(rows_file), "weight": 2}]]},
    }
    assert most_steps(spaced(job, three)) == 5 * rows, "the ends of three together"


def test_a_warm_up_that_the_rows_are_too_few_for_is_refused_before_a_cluster(job: JobSpec) -> None:
    space = {"optimizer.epochs": {"choice": [0.1, 9]}}
    with pytest.raises(InputError, match=r"optimizer\.warmup_steps is 4, but must be below"):
        preflight(spaced(job, space, optimizer__epochs=9, optimizer__warmup_steps=4))
