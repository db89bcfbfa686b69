"""What is told of a job's time by trials that have run before."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import JobSpec, dump_job, override_job, portable
from orchestrator.report.earlier import EarlierTrials, earlier_trials

Ended = Mapping[str, tuple[float, float]]
TWO_AT_A_TIME = {"T000": (0.0, 80.0), "T001": (0.0, 120.0), "T002": (80.0, 180.0)}


@pytest.fixture
def job(job_in: Callable[[Path], JobSpec], tmp_path: Path) -> JobSpec:
    return override_job(job_in(tmp_path / "runs"), {"search.max_concurrent": 2}, "test")


def ran(job: JobSpec, name: str, trials: Ended, **changes: Any) -> Path:
    """A study of the job's kind as it lies on disk: trials of 40 steps, by start and end."""
    job = override_job(job, {"name": name} | changes, "test")
    job.study_folder().mkdir(parents=True)
    for trial, (start, end) in trials.items():
        folder = job.study_folder() / "trials" / trial
        folder.mkdir(parents=True)
        told = [("started", start, 0), ("finished", end, 40)]
        lines = (
            json.dumps({"at": at, "kind": kind, "message": "-", "step": step})
            for kind, at, step in told
        )
        (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    (job.study_folder() / "job.json").write_text(dump_job(portable(job)))
    return job.study_folder()


def test_trials_of_a_study_like_this_one_tell_the_time(job: JobSpec) -> None:
    assert earlier_trials(job, 1) is None
    ran(job, "before", TWO_AT_A_TIME, **{"optimizer.steps": 40})
    found = earlier_trials(job, 1)
    assert found == EarlierTrials("before", 3, 2.5, at_once=2)
    assert found.seconds(10, 400) == 5 * 400 * 2.5
    assert found.seconds(3, 40) == 200, "the third one begins when another has ended"


@pytest.mark.parametrize(
    "other",
    [
        {"optimizer.batch_size": 4},
        {"optimizer.micro_batch_tokens": 512},
        {"model.dtype": "float32"},
        {"data.max_length": 64},
        {"evaluation.every": 5},
        {"parallel.workers": 2},
        {"search.max_concurrent": 1},
        {"search.cpus_per_worker": 2},
        {"search.pack": 2},
    ],
    ids=str,
)
def test_what_costs_another_time_tells_nothing(job: JobSpec, other: dict[str, Any]) -> None:
    ran(job, "before", TWO_AT_A_TIME, **other)
    assert earlier_trials(job, 1) is None


@pytest.mark.parametrize(
    "other",
    [{"optimizer.steps": 80}, {"adapter.rank": 4}, {"optimizer.lr": 1e-3}, {"seed": 3}],
    ids=str,
)
def test_shapes_rates_and_numbers_of_steps_may_differ(job: JobSpec, other: dict[str, Any]) -> None:
    ran(job, "before", TWO_AT_A_TIME, **other)
    assert earlier_trials(job, 1)


def test_a_pack_is_told_by_packs_of_its_size(job: JobSpec) -> None:
    ran(job, "packs", TWO_AT_A_TIME, **{"search.pack": 2})
    assert earlier_trials(job, 1) is None
    found = earlier_trials(job, 2)
    assert found
    assert (found.study, found.at_once) == ("packs", 2)


def test_the_newest_study_with_a_finished_trial_counts(job: JobSpec) -> None:
    for age, (name, trials) in enumerate(
        {"none": {}, "newest": {"T000": (0.0, 40.0)}, "oldest": TWO_AT_A_TIME}.items()
    ):
        os.utime(ran(job, name, trials) / "job.json", (1e9 - age, 1e9 - age))
    broken = job.study_folder().parent / "broken"
    broken.mkdir()
    (broken / "job.json").write_text("{}")
    assert earlier_trials(job, 1) == EarlierTrials("newest", 1, 1.0, at_once=1)


def test_who_was_cut_off_or_stopped_took_a_place_and_tells_no_time(job: JobSpec) -> None:
    folder = ran(job, "before", {"T000": (0.0, 80.0), "T001": (10.0, 500.0)})
    again = {"at": 400.0, "kind": "resumed", "message": "-", "step": 20}
    events = folder / "trials/T001/events.jsonl"
    first, last = events.read_text().splitlines()
    events.write_text("\n".join([first, json.dumps(again), last]) + "\n")
    stopped = folder / "trials/T002"
    stopped.mkdir()
    (stopped / "events.jsonl").write_text(first + "\n")
    (stopped / "progress.jsonl").write_text("")
    os.utime(stopped / "progress.jsonl", (60.0, 60.0))
    assert earlier_trials(job, 1) == EarlierTrials("before", 1, 2.0, at_once=3)
