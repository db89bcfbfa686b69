"""Moving a study's trials to new rows, cut off in the middle of it. Whole runs: test_bad_data."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.job import JobSpec, portable
from orchestrator.tuning import new_data
from orchestrator.tuning.lifecycle import begin
from orchestrator.tuning.storage import storage
from orchestrator.tuning.study import Study
from workers.config.train import TrainSpec
from workers.train.used import UsedInputs, dtype_file, note_used, used_file


@pytest.fixture
def job(make_spec: Callable[..., TrainSpec], tmp_path: Path) -> JobSpec:
    """A study with a trial that was cut off behind step 2; its rows have changed since."""
    values = {"name": "tiny", "train": make_spec(optimizer__steps=6).model_dump()}
    job = portable(
        JobSpec.model_validate(
            {**values, "search": {"space": "smoke"}, "cluster": {"storage": str(tmp_path / "runs")}}
        )
    )
    note_used(used_file(job.study_folder(), job.train), UsedInputs(data="0" * 64, base="0" * 64))
    dtype_file(job.study_folder()).write_text("bfloat16\n")
    with storage(job.cluster, create=True) as store:
        begin(job, False, store).ask().set_user_attr("values", {"optimizer.lr": 0.001})
    step = job.study_folder() / "trials/T000/checkpoints/step-00000002"
    step.mkdir(parents=True)
    (step / "state").write_text("learned")
    return job


@pytest.mark.parametrize("cut_off", ["begin", "_moved", "_copy_checkpoints", "_end"])
def test_a_move_that_was_cut_off_is_made_once(
    job: JobSpec, cut_off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(new_data, cut_off)

    def then_killed(*args: object) -> None:
        real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(new_data, cut_off, then_killed)
        with pytest.raises(KeyboardInterrupt):
            new_data.on_new_data(job)
    renamed = new_data.on_new_data(job)
    assert renamed.name == "tiny-2"
    assert [trial.state.name for trial in Study.open(job.cluster, "tiny-2").optuna.trials] == [
        "RUNNING"
    ]
    assert dtype_file(renamed.study_folder()).read_text() == "bfloat16\n", "as it began"
    moved = renamed.study_folder() / "trials"
    assert [str(path.relative_to(moved)) for path in moved.rglob("state")] == [
        "T000/checkpoints/step-00000002/state"
    ]
    assert Study.open(job.cluster, "tiny").row(0).state == "failed"
    assert new_data.on_new_data(job).name == "tiny-2", "again: nothing more to move"
