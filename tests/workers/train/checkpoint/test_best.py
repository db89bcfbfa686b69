"""Runs that end early leave their best evaluation's adapter, also after a kill."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.workers.train.one_trial import OneTrial, configured
from workers.adapter.folder import WEIGHTS
from workers.adapter.manifest import read_manifest
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.run.early_stopping import Patience, WatchedMetric
from workers.run.events import read_events
from workers.run.record import Metrics, RunPlan, RunRecord, read_progress
from workers.run.samples import read_samples
from workers.train.attempt import Attempt
from workers.train.checkpoint.manager import CheckpointManager
from workers.train.loop import TrainingRun
from workers.train.task import RunTask
from workers.train.used import note_used, used_file

SpecMaker = Callable[..., TrainSpec]
WholeRun = Callable[[TrainSpec], dict[int, bytes]]
PEAK = WatchedMetric("train/lr", "max")
"""With a warm-up it rises and falls, on every machine alike."""
BEST, LAST = 4, 8


class PeakTrial(OneTrial):
    """A run that watches its learning rate."""

    @classmethod
    def task(cls, name: str, config: Mapping[str, Any]) -> RunTask:
        task = super().task(name, config)
        return replace(task, plan=replace(task.plan, watched=PEAK))


@pytest.fixture
def spec(make_spec: SpecMaker, tmp_path: Path) -> TrainSpec:
    return make_spec(
        adapter__dropout=0.1,
        optimizer__steps=12,
        optimizer__warmup_steps=4,
        optimizer__early_stopping={"patience": 2},
        evaluation__every=2,
        evaluation__samples=2,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "studies" / "study" / "trials" / "T000"


def trial(spec: TrainSpec, folder: Path) -> PeakTrial:
    return PeakTrial(configured(spec, folder))


def to_the_end(worker: PeakTrial) -> list[Metrics]:
    reports = [worker.train()]
    while not reports[-1]["done"]:
        reports.append(worker.train())
    worker.stop()
    return reports


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """`whole_run(spec)`: the weights at each evaluation of the run that nothing ends early, nor
    cuts off; it is run once for each number of steps, in which alone these runs differ."""
    known: dict[int, dict[int, bytes]] = {}

    def weights(spec: TrainSpec) -> dict[int, bytes]:
        if spec.optimizer.steps not in known:
            folder = tmp_path_factory.mktemp("whole")
            known[spec.optimizer.steps] = weights_of(spec, folder)
        return known[spec.optimizer.steps]

    return weights


def weights_of(spec: TrainSpec, folder: Path) -> dict[int, bytes]:
    optimizer = spec.optimizer.model_copy(update={"early_stopping": None})
    plain = spec.model_copy(update={"optimizer": optimizer})
    run, found = TrainingRun(plain, RunPlan(folder, "study")), {}
    while not run.done:
        step = run.advance()["step"]
        run.save_adapter(folder / str(step))
        found[step] = (folder / str(step) / WEIGHTS).read_bytes()
    run.close()
    return found


def check_best(folder: Path, weights: dict[int, bytes], step: int = BEST) -> None:
    assert len({*weights.values()}) == len(weights), "each evaluation has weights of its own"
    assert (folder / "adapter" / WEIGHTS).read_bytes() == weights[step]
    manifest = read_manifest(folder / "adapter")
    assert manifest
    assert manifest.metrics["step"] == step
    assert read_samples(folder / "samples.json")


def test_a_run_ends_early_and_leaves_its_best(
    spec: TrainSpec, folder: Path, whole_run: WholeRun
) -> None:
    reports = to_the_end(trial(spec, folder))
    assert [report["step"] for report in reports] == [2, 4, 6, LAST]
    told = [report["early_stopping"] for report in reports]
    assert [one["best_step"] for one in told] == [2, BEST, BEST, BEST]
    assert [one["waited"] for one in told] == [0, 0, 1, 2]
    assert [one["stopped"] for one in told] == [0, 0, 0, 1]
    weights = whole_run(spec)
    check_best(folder, weights)
    (ended,) = [event for event in read_events(folder) if event.kind == "finished"]
    assert ended.message.startswith("stopped early: train/lr has got no better in 2 evaluations;")
    assert ended.message.endswith("the best was at step 4")


def test_a_run_that_takes_all_steps_leaves_its_best_too(
    spec: TrainSpec, folder: Path, whole_run: WholeRun
) -> None:
    optimizer = spec.optimizer.model_copy(update={"steps": LAST})
    spec = spec.model_copy(update={"optimizer": optimizer})
    last = to_the_end(trial(spec, folder))[-1]
    assert (last["step"], last["early_stopping"]["waited"]) == (LAST, 2)
    assert last["early_stopping"]["stopped"] == 0
    check_best(folder, whole_run(spec))
    assert read_events(folder)[-1].message == "all steps are done"


@pytest.mark.parametrize("reported", [1, 2, 3, 4])
@pytest.mark.parametrize("every", [None, 3], ids=["at evaluations", "in between"])
def test_one_that_is_cut_off_goes_on_waiting_and_finds_its_best(
    spec: TrainSpec, folder: Path, whole_run: WholeRun, reported: int, every: int | None
) -> None:
    checkpoint = spec.checkpoint.model_copy(update={"every": every})
    spec = spec.model_copy(update={"checkpoint": checkpoint})
    cut_off = trial(spec, folder)
    for _ in range(reported):
        cut_off.train()
    cut_off.cleanup()
    reports = to_the_end(trial(spec, folder))
    assert reports[-1]["early_stopping"] == {
        "best": pytest.approx(spec.optimizer.lr),
        "best_step": BEST,
        "waited": 2,
        "stopped": 1,
    }
    assert [report["step"] for report in read_progress(folder)] == [2, 4, 6, LAST]
    check_best(folder, whole_run(spec))


def test_a_better_one_that_no_checkpoint_has_is_taken_back(
    spec: TrainSpec, folder: Path, whole_run: WholeRun
) -> None:
    """After the checkpoint at step 3 the evaluation at step 4 is the best: it is found again, or by
    other workers perhaps not."""
    checkpoint = spec.checkpoint.model_copy(update={"every": 3})
    spec = spec.model_copy(update={"checkpoint": checkpoint})
    weights = whole_run(spec)
    cut_off = trial(spec, folder)
    cut_off.train()
    cut_off.train()
    cut_off.cleanup()
    check_best(folder, weights, step=4)
    again = trial(spec, folder)
    attempt = again._begin()
    assert attempt.run.step == 3
    check_best(folder, weights, step=2)
    again.cleanup()


def test_the_best_comes_back_from_the_upload(
    spec: TrainSpec, folder: Path, tmp_path: Path, whole_run: WholeRun
) -> None:
    checkpoint = spec.checkpoint.model_copy(update={"upload": f"file://{tmp_path}/bucket"})
    spec = spec.model_copy(update={"checkpoint": checkpoint})
    cut_off = trial(spec, folder)
    for _ in range(3):
        cut_off.train()
    assert cut_off._attempt
    cut_off._attempt.checkpoints.finish()
    cut_off.cleanup()
    shutil.rmtree(folder)
    assert [report["step"] for report in to_the_end(trial(spec, folder))] == [LAST]
    check_best(folder, whole_run(spec))


def test_one_that_ended_before_it_could_say_so_says_it_again(
    spec: TrainSpec, folder: Path, whole_run: WholeRun
) -> None:
    first = to_the_end(trial(spec, folder))[-1]
    (again,) = to_the_end(trial(spec, folder))
    assert again["done"]
    assert again["early_stopping"] == first["early_stopping"]
    check_best(folder, whole_run(spec))


def test_a_checkpoint_whose_best_is_damaged_is_passed_over(spec: TrainSpec, folder: Path) -> None:
    cut_off = trial(spec, folder)
    for _ in range(3):
        cut_off.train()
    cut_off.cleanup()
    damaged = folder / "checkpoints" / "step-00000006" / "best" / "adapter" / WEIGHTS
    kept = damaged.read_bytes()
    damaged.unlink()  # another name of the run's own
    damaged.write_bytes(kept[:-8])
    reports = to_the_end(trial(spec, folder))
    assert [report["step"] for report in reports] == [6, LAST]
    assert "checkpoint failed" in [event.kind for event in read_events(folder)]


def test_a_best_stands_on_the_disk_once(spec: TrainSpec, folder: Path) -> None:
    to_the_end(trial(spec, folder))
    own = folder / "adapter" / WEIGHTS
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        assert own.samefile(checkpoint / "best" / "adapter" / WEIGHTS)


def test_on_other_rows_the_wait_begins_anew(
    spec: TrainSpec, folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    """Values over other rows do not compare, nor does an adapter that never saw them."""
    rows = Path(shutil.copy(rows_file, tmp_path / "rows.jsonl"))
    data = spec.data.model_copy(update={"train": str(rows)})
    spec = spec.model_copy(update={"data": data})
    shared = folder.parents[1]
    plan = RunPlan(folder, "study", shared=shared, watched=PEAK)
    run = TrainingRun(spec, plan)
    attempt = Attempt(run, CheckpointManager(spec, plan, run.world), RunRecord(folder))
    for _ in range(3):
        attempt.next_report()
    attempt.close()
    with rows.open("a") as file:
        file.write(rows_file.read_text().splitlines()[0] + "\n")
    again = TrainingRun(spec, plan)
    used = again.inputs.used.model_copy(update={"earlier_data": (run.inputs.used.data,)})
    note_used(used_file(shared, spec), used)
    CheckpointManager(spec, plan, again.world).resume(again)
    assert again.step == 6
    assert again.patience == Patience.of(spec.optimizer.early_stopping, PEAK)
    assert again.advance()["early_stopping"]["best_step"] == LAST
    again.close()


def test_what_is_watched_must_be_reported(spec: TrainSpec, folder: Path) -> None:
    """A trial's is looked up before a cluster starts."""
    plan = RunPlan(folder, "study", watched=WatchedMetric("validation/score", "max"))
    run = TrainingRun(spec, plan)
    with pytest.raises(InputError, match="watches validation/score, which is not reported"):
        run.advance()
    run.close()
