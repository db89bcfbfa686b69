"""Studies on a real Ray cluster, with a tiny model: to the end, through failures and kills."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.session import Session
from orchestrator.config.job import JobSpec, dump_job, override_job
from orchestrator.registry.registry import Registry
from orchestrator.tuning.events import TrialEvent
from orchestrator.tuning.preflight import preflight
from orchestrator.tuning.storage import CutOff
from orchestrator.tuning.study import Study, TrialRow
from orchestrator.tuning.tuner import run
from workers.adapter import files
from workers.adapter.folder import WEIGHTS
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.run.record import read_progress

MakeJob = Callable[..., JobSpec]

DRIVER = """
import sys
from cluster.session import session
from orchestrator.config.job import load_job
from orchestrator.tuning.tuner import run
with session(sys.argv[2]):
    run(load_job(sys.argv[1]), on_progress=lambda e: print(e.number, e.kind, e.step, flush=True))
"""


@pytest.fixture(scope="module")
def make_job(make_spec: Callable[..., TrainSpec]) -> MakeJob:
    """`make_job(storage, search__trials=3, …)`: a study of seconds that ASHA leaves alone;
    keywords are fields of JobSpec."""

    def make(storage: Path, **changes: Any) -> JobSpec:
        job = JobSpec.model_validate(
            {
                "name": "tiny",
                "train": make_spec(optimizer__steps=6).model_dump(),
                "search": {"space": "smoke", "trials": 3, "grace_evaluations": 3},
                "cluster": {"storage": str(storage)},
            }
        )
        return override_job(job, {k.replace("__", "."): v for k, v in changes.items()}, "test")

    return make


@dataclass(frozen=True)
class Ran:
    """A study that ran, and what it told."""

    job: JobSpec
    study: Study
    events: list[TrialEvent]

    @property
    def rows(self) -> list[TrialRow]:
        """Its trials by number."""
        return sorted(self.study.leaderboard(), key=lambda row: row.number)

    def folder(self, number: int) -> Path:
        """A trial's folder."""
        return self.job.study_folder() / "trials" / f"T{number:03d}"

    def kinds(self, number: int) -> list[str]:
        """What happened to a trial."""
        return [event.kind for event in self.events if event.number == number]


def stands_once(ran: Ran, row: TrialRow) -> bool:
    """Whether a trial's weights and its version's are one file."""
    registry = Registry(ran.job.store_url(), ran.job.cluster.storage)
    version = registry.version(row.version or "")
    return (version.folder / WEIGHTS).samefile(ran.folder(row.number) / "adapter" / WEIGHTS)


def run_through(job: JobSpec, resume: bool = False) -> Ran:
    events: list[TrialEvent] = []
    preflight(job, resume)
    return Ran(job, run(job, resume, events.append), events)


@pytest.fixture(scope="module")
def whole(make_job: MakeJob, ray_cluster: Session, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A study of three trials that nothing disturbed. Only to be read."""
    return run_through(make_job(tmp_path_factory.mktemp("whole")))


def test_every_trial_leaves_its_record_and_a_version(whole: Ran) -> None:
    registry = Registry(whole.job.store_url(), whole.job.cluster.storage)
    assert [(row.number, row.state) for row in whole.rows] == [(n, "finished") for n in range(3)]
    for row in whole.rows:
        assert row.version is not None
        version = registry.version(row.version)
        assert (version.study, version.trial, version.id) == ("tiny", row.number, row.version)
        assert version.metrics["validation"]["loss"] == row.value
        registry.verify(version)
        assert stands_once(whole, row)
        trial = whole.study.optuna.trials[row.number]
        spec = TrainSpec.model_validate_json((whole.folder(row.number) / "train.json").read_text())
        settled = {"model.dtype": "float32"}  # by a worker without a GPU
        assert spec == override(whole.job.train, trial.user_attrs["values"] | settled, "test")
        reports = read_progress(whole.folder(row.number))
        losses = {report["step"]: report["validation"]["loss"] for report in reports}
        assert [*losses] == [2, 4, 6]
        assert trial.intermediate_values == losses
        assert row.metrics == reports[-1]
        assert row.value == losses[6] < losses[2]
    assert json.loads((whole.study.folder / "job.json").read_text())["name"] == "tiny"
    assert not (whole.study.folder / "tune").exists()


def test_what_finds_no_room_leaves_nothing_behind(
    make_job: MakeJob, ray_cluster: Session, tmp_path: Path
) -> None:
    job = make_job(tmp_path / "runs", search__cpus_per_worker=5)
    with pytest.raises(ClusterError, match="a trial wants 1 worker of 5 CPUs, and has no room"):
        run(job)
    assert not (tmp_path / "runs").exists()


def test_a_study_tells_what_happens(whole: Ran) -> None:
    expected = ["started", "reported", "reported", "reported", "finished"]
    assert [whole.kinds(number) for number in range(3)] == [expected] * 3
    last = whole.events[-1]
    assert (last.number, last.step, last.steps) == (2, 6, 6)
    assert last.value == whole.rows[2].value
    assert last.params == whole.study.optuna.trials[2].user_attrs["values"]


def test_a_finished_study_is_neither_run_again_nor_overwritten(whole: Ran) -> None:
    again = run_through(whole.job, resume=True)
    assert again.events == []
    assert again.rows == whole.rows
    with pytest.raises(InputError, match="exists already"):
        run(whole.job)


def test_a_store_that_fails_cuts_a_study_off_in_one_line(
    make_job: MakeJob,
    ray_cluster: Session,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    job = make_job(tmp_path, search__trials=1)
    file = tmp_path / "moetune.db"

    def spoil(event: TrialEvent) -> None:
        if event.kind == "reported" and event.step == 2:
            shutil.copyfile(file, tmp_path / "kept.db")
            file.write_text("no database at all")

    with pytest.raises(CutOff, match="study tiny was cut off: ") as caught:
        run(job, on_progress=spoil)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    (tmp_path / "kept.db").replace(file)
    assert [row.state for row in run_through(job, resume=True).rows] == ["finished"]


def test_a_setting_is_not_trained_again(
    make_job: MakeJob, ray_cluster: Session, tmp_path: Path
) -> None:
    space = {"adapter.rank": {"choice": [2, 4]}}
    ran = run_through(
        make_job(tmp_path, search__space=space, search__trials=6, search__max_concurrent=2)
    )
    assert [row.state for row in ran.rows] == ["finished"] * 6
    trained = [row for row in ran.rows if ran.folder(row.number).exists()]
    assert sorted(row.params["adapter.rank"] for row in trained) == [2, 4]
    assert {event.number for event in ran.events} == {row.number for row in trained}
    assert ran.events[-1].states == {"finished": 6}
    for row in ran.rows:
        (same,) = [one for one in trained if one.params == row.params]
        assert (row.value, row.version) == (same.value, same.version)


def test_asha_stops_what_falls_behind_and_failures_are_retried_then_recorded(
    make_job: MakeJob, ray_cluster: Session, tmp_path: Path
) -> None:
    """A learning rate that learns, one that does not, and one that ends in infinity."""
    good, idle, broken = 1e-2, 1e-9, 1e30
    job = make_job(
        tmp_path,
        search__trials=4,
        search__seed=69,  # asks for good, idle, broken, idle
        search__grace_evaluations=1,
        search__reduction_factor=2,
        search__space={"optimizer.lr": {"choice": [good, idle, broken]}},
        search__repeat=True,
    )
    ran = run_through(job)
    assert [row.params["optimizer.lr"] for row in ran.rows] == [good, idle, broken, idle]
    assert [row.state for row in ran.rows] == ["finished", "stopped", "failed", "stopped"]
    assert [row.steps for row in ran.rows] == [6, 2, 0, 2]
    assert [row.version is None for row in ran.rows] == [False, True, True, True]
    reason = ran.rows[2].reason
    assert reason
    assert "diverged" in reason
    assert ran.study.optuna.trials[2].user_attrs["failures"] == [reason] * 2
    assert (ran.folder(2) / "error.txt").read_text().strip() == reason
    assert ran.kinds(2) == ["started", "retried", "started", "failed"]


def test_a_trial_whose_process_was_killed_goes_on_from_its_checkpoint(
    make_job: MakeJob, ray_cluster: Session, tmp_path: Path, whole: Ran
) -> None:
    from ray.util.state import list_actors

    def kill_once(event: TrialEvent) -> None:
        if (event.kind, event.step) == ("reported", 4) and not killed:
            actors = list_actors(address=ray_cluster.address, filters=[("state", "=", "ALIVE")])
            killed.extend(actor.pid for actor in actors if "Train" in actor.class_name)
            for process in killed:
                os.kill(process, signal.SIGKILL)
        events.append(event)

    killed: list[int] = []
    events: list[TrialEvent] = []
    job = make_job(tmp_path, search__trials=1)
    ran = Ran(job, run(job, on_progress=kill_once), events)
    assert len(killed) == 1
    assert "retried" in ran.kinds(0)
    assert [e.step for e in events if e.kind == "reported"] in ([2, 4, 6], [2, 4, 4, 6])
    assert_same(ran, whole, [0])


@pytest.mark.parametrize("until", ["0 started 0", "1 reported 4"])
def test_a_study_goes_on_after_its_driver_was_killed(
    until: str, make_job: MakeJob, ray_cluster: Session, tmp_path: Path, whole: Ran
) -> None:
    job = make_job(tmp_path / "runs")
    kill_driver(job, until, ray_cluster)
    before = Study.open(job.cluster, "tiny").optuna.trials
    assert not before[-1].state.is_finished()
    ran = run_through(job, resume=True)
    after = ran.study.optuna.trials
    for trial in before:
        assert after[trial.number].user_attrs["values"] == trial.user_attrs["values"]
    for trial in before[:-1]:  # had finished: nothing touched it since
        assert after[trial.number] == trial
        assert ran.kinds(trial.number) == []
    if until.startswith("1"):
        first = next(e for e in ran.events if (e.number, e.kind) == (1, "reported"))
        assert first.step > 2  # from its checkpoint, not from the beginning
    assert_same(ran, whole, [0, 1, 2])


def assert_same(ran: Ran, unbroken: Ran, numbers: list[int]) -> None:
    """The same trials with the same losses and weights, whatever happened on the way."""
    assert [row.number for row in ran.rows] == numbers
    for number in numbers:
        ours, theirs = ran.rows[number], unbroken.rows[number]
        assert (ours.state, ours.params) == ("finished", theirs.params)
        losses = [
            [report["validation"]["loss"] for report in read_progress(one.folder(number))]
            for one in (ran, unbroken)
        ]
        assert losses[0] == losses[1]
        weights = [
            (one.folder(number) / "adapter" / "adapter_model.safetensors").read_bytes()
            for one in (ran, unbroken)
        ]
        assert weights[0] == weights[1]


def kill_driver(job: JobSpec, until: str, cluster: Session) -> None:
    """Run a study in another process, and kill it as soon as it tells a line that begins so."""
    file = Path(job.cluster.storage).with_name("job.yaml")
    file.write_text(dump_job(job))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, file, cluster.address], stdout=subprocess.PIPE, text=True
    )
    told = []
    try:
        assert driver.stdout
        for line in driver.stdout:
            told.append(line)
            if line.startswith(until):
                return
        pytest.fail(f"the driver ended before {until}: {told}")
    finally:
        driver.kill()
        driver.wait()


def test_several_workers_make_one_trial(
    make_job: MakeJob, ray_cluster: Session, tmp_path: Path
) -> None:
    ran = run_through(make_job(tmp_path, search__trials=1, parallel__workers=2))
    (row,) = ran.rows
    assert (row.state, row.steps) == ("finished", 6)
    assert row.version
    assert stands_once(ran, row)
    (trial,) = ran.study.optuna.trials
    assert list(trial.intermediate_values) == [2, 4, 6]
    assert ran.kinds(0) == ["started", "reported", "reported", "reported", "finished"]
    reports = read_progress(ran.folder(0))
    losses = {report["step"]: report["validation"]["loss"] for report in reports}
    assert trial.intermediate_values == losses
    assert row.metrics == reports[-1]
    spec = override(ran.job.train, trial.user_attrs["values"], "test")
    assert files.read(ran.folder(0) / "adapter").spec.rank == spec.adapter.rank


@pytest.mark.parametrize("workers", [1, 2])
def test_asha_and_early_stopping_work_together(
    workers: int, make_job: MakeJob, ray_cluster: Session, tmp_path: Path
) -> None:
    """A learning rate that learns, less than is asked for, and one that does not, which falls
    behind at the first rung."""
    good, idle = 1e-2, 1e-9
    job = make_job(
        tmp_path / "runs",
        optimizer__steps=12,
        optimizer__early_stopping={"patience": 2, "min_delta": 10.0},
        parallel__workers=workers,
        search__trials=2,
        search__seed=69,  # asks for good, idle
        search__grace_evaluations=1,
        search__reduction_factor=2,
        search__space={"optimizer.lr": {"choice": [good, idle]}},
    )
    ran = run_through(job)
    assert [row.params["optimizer.lr"] for row in ran.rows] == [good, idle]
    early, stopped = ran.rows
    assert (early.state, early.steps, stopped.state) == ("finished", 6, "stopped")
    most = 2 if workers == 1 else 6  # a group trains on until it hears of it
    assert 2 <= stopped.steps <= most
    assert (early.stopped_early, early.best_step) == (True, 6)
    assert (stopped.stopped_early, stopped.version) == (False, None)
    ends = [event for event in ran.events if event.kind in ("finished", "stopped")]
    assert [event.message for event in ends] == ["stopped early, its best at step 6", ""]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_version_is_the_best_evaluations(
    workers: int, make_job: MakeJob, ray_cluster: Session, tmp_path: Path
) -> None:
    """The learning rate rises with its warm-up, and falls."""
    job = make_job(
        tmp_path / "runs",
        optimizer__steps=12,
        optimizer__warmup_steps=4,
        optimizer__early_stopping={"patience": 1},
        parallel__workers=workers,
        search__trials=1,
        search__space=None,
        search__metric="train/lr",
        search__mode="max",
    )
    ran = run_through(job)
    (row,) = ran.rows
    reports = read_progress(ran.folder(0))
    assert [report["step"] for report in reports] == [2, 4, 6]
    assert (row.state, row.steps, row.best_step, row.stopped_early) == ("finished", 6, 4, True)
    assert row.value == reports[1]["train"]["lr"] > reports[2]["train"]["lr"]
    assert row.metrics == reports[1]
    assert stands_once(ran, row)
    registry = Registry(job.store_url(), job.cluster.storage)
    assert registry.version(row.version or "").metrics == reports[1]
    assert ran.events[-1].value == row.value
    (trial,) = ran.study.optuna.trials
    assert list(trial.intermediate_values) == [2, 4, 6]


@pytest.mark.parametrize("workers", [1, 2])
def test_trials_may_differ_in_epochs(
    workers: int, make_job: MakeJob, ray_cluster: Session, tmp_path: Path
) -> None:
    """ASHA and the leaderboard know the steps that they are, whichever way a trial is started."""
    space = {"optimizer.epochs": {"choice": [1, 2.5]}}
    ran = run_through(
        make_job(
            tmp_path / "runs", search__space=space, search__trials=4, parallel__workers=workers
        )
    )
    trained = [row for row in ran.rows if row.steps]
    by_epochs = {row.params["optimizer.epochs"]: row.steps for row in trained}
    assert {row.state for row in ran.rows} == {"finished"}
    rows = Path(ran.job.train.data.train_name).read_text().splitlines()
    an_epoch = math.ceil(len(rows) / ran.job.train.optimizer.batch_size)
    assert len(by_epochs) == 2
    assert by_epochs == {epochs: math.ceil(epochs * an_epoch) for epochs in by_epochs}
    ends = [event for event in ran.events if event.kind == "finished"]
    assert all(event.step == event.steps for event in ends)
