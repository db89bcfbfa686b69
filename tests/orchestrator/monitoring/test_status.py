"""Where a study is, from its storage and its trials' files."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import JobSpec
from orchestrator.monitoring.status import RunStatus, StudyStatus, run_status, study_status
from orchestrator.tuning.study import Study, trial_name
from workers.run.events import EventLog
from workers.run.heartbeat import Heartbeat
from workers.run.progress import StepTimer
from workers.train.step import StepResult

Play = Callable[..., object]
ENDS = ["finished", "finished", "stopped", "failed", "cut", "cut"]


class Stopped:
    """A clock that shows the same second, but for what is added to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def train(folder: Path, steps_done: int) -> None:
    """A run of 40 steps of a second, in the midst of it."""
    clock = Stopped()
    timer = StepTimer(40, 10, workers=1, clock=clock)
    timer.start()
    for step in range(1, steps_done + 1):
        clock.now += 1.0
        losses = {"loss": 1.25, "load_balance": 1.125}
        result = StepResult(losses, grad_norm=1.0, lr=2e-4, tokens=500)
        progress = timer.step(step, step / 16, result)
    write(folder, rank=0, workers=1, step=steps_done, phase="forward", beats=40, progress=progress)


def write(folder: Path, **facts: Any) -> None:
    """A worker's file, written this moment."""
    path = folder / "ranks" / f"{facts['rank']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(Heartbeat(seconds=1, at=time.time(), every=1, **facts).model_dump_json())


@pytest.fixture
def status(job: JobSpec, play: Play) -> StudyStatus:
    """Of a study of ten trials, four of which ended; one trains, one has not begun."""
    play(job, ENDS)
    folder = job.study_folder() / "trials"
    train(folder / trial_name(4), steps_done=8)
    return study_status(Study.open(job.cluster, job.name))


def test_a_study_says_what_has_ended_and_what_runs(status: StudyStatus, job: JobSpec) -> None:
    assert (status.study, status.trials) == ("home", 10)
    assert status.ended == {"finished": 2, "stopped": 1, "failed": 1}
    assert [run.trial for run in status.running] == [4, 5]
    best = Study.open(job.cluster, job.name).best()
    assert best is not None
    assert (status.best, status.best_trial) == (best.value, best.number)
    training, starting = status.running
    assert (training.phase, starting.phase) == ("forward", "starting")
    assert training.progress is not None
    assert training.progress.eta_seconds == 32.0
    headline, first, second = status.lines()
    assert headline.startswith(
        "study home · 4 of 10 trials ended (2 finished, 1 stopped, 1 failed) · best validation/loss"
    )
    assert headline.endswith(" left")
    assert first == (
        "trial 4 · 8/40 steps · 32 s left · loss 1.250 · balance 1.12 · 500 tokens/s"
        " · 1 s a step · lr 2.00e-04 · epoch 0.50"
    )
    assert second == "trial 5 · starting"
    assert StudyStatus.model_validate_json(status.model_dump_json()) == status


def test_the_time_left_counts_the_trials_to_come(job: JobSpec, play: Play) -> None:
    play(job, ENDS)
    study = Study.open(job.cluster, job.name)
    trials = study.optuna.get_trials(deepcopy=False)
    taken = [t.duration for t in trials if t.state.name in ("COMPLETE", "PRUNED") and t.duration]
    usual = sorted(taken)[1].total_seconds()
    train(study.folder / "trials" / trial_name(4), steps_done=8)
    # One slot is free when trial 4 ends after 32 s, the other after a usual trial of next to no
    # time: the four to come all fit into it.
    eta = study_status(study).eta_seconds
    assert eta is not None
    assert eta == pytest.approx(max(32.0, 5 * usual))


def test_nothing_is_foretold_before_anything_is_known(job: JobSpec, play: Play) -> None:
    play(job, ["cut"])
    status = study_status(Study.open(job.cluster, job.name))
    assert (status.eta_seconds, status.best) == (None, None)
    assert status.lines() == ["study home · 0 of 10 trials ended", "trial 0 · starting"]


def test_the_first_trials_foretell_the_others(job: JobSpec, play: Play) -> None:
    play(job, ["cut"])
    study = Study.open(job.cluster, job.name)
    train(study.folder / "trials" / trial_name(0), steps_done=8)
    (trial,) = study.optuna.get_trials(deepcopy=False)
    assert trial.datetime_start is not None
    so_far = datetime.now() - trial.datetime_start
    eta = study_status(study).eta_seconds
    assert eta is not None
    whole = so_far + timedelta(seconds=32)
    assert eta == pytest.approx(32 + 9 * whole.total_seconds(), rel=0.2)


def test_an_ended_study_says_so(job: JobSpec, play: Play) -> None:
    play(job, ["finished"] * 10)
    status = study_status(Study.open(job.cluster, job.name))
    assert (status.running, status.eta_seconds, status.ended["finished"]) == ((), None, 10)


def test_a_study_says_how_many_ended_early_and_where_the_best_was(job: JobSpec, play: Play) -> None:
    play(job, ["early", "stopped"])
    status = study_status(Study.open(job.cluster, job.name))
    assert (status.best, status.best_step, status.stopped_early) == (0.75, 20, 1)
    line = "study home · 2 of 10 trials ended (1 finished (1 early), 1 stopped)"
    assert status.headline().startswith(f"{line} · best validation/loss 0.75 (trial 0, step 20)")


def test_the_slowest_worker_says_what_a_run_does(tmp_path: Path) -> None:
    write(tmp_path, rank=0, workers=2, step=3, phase="evaluate", beats=9)
    write(tmp_path, rank=1, workers=2, step=3, phase="reduce", beats=8)
    log = EventLog(tmp_path)
    log.note("lost", "its process is gone", worker=1)
    log.note("exchange", "by tokens")
    log.note("finished", "all steps are done")
    assert run_status(tmp_path).phase == "reduce"
    event = run_status(tmp_path).event
    assert event is not None
    assert (event.kind, event.worker) == ("lost", 1)
    log.note("memory", "out of memory: 2 rows at most in a forward pass from here on", step=2)
    assert any("out of memory: 2 rows" in line for line in run_status(tmp_path).lines())
    assert run_status(tmp_path / "nothing") == RunStatus()
    assert RunStatus().lines() == ["training · starting"]
