"""Runs whose rows are streamed: they learn, go on exactly, and say what they know."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.workers.train.one_trial import configured, trial
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.data.store.token_store import TokenStore
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def spec(make_spec: SpecMaker) -> TrainSpec:
    """Six steps over windows of two."""
    return make_spec(
        data__streaming=True,
        data__streaming_buffer=16,
        data__record_rows=True,
        optimizer__steps=6,
        adapter__dropout=0.1,
    )


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.adapter.state_dict().items()}


def started(spec: TrainSpec, folder: Path) -> TrainingRun:
    folder.mkdir(exist_ok=True)
    return TrainingRun(spec, RunPlan(folder, "study"))


def rows_of(folder: Path) -> list[object]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_goes_on_in_the_middle_of_a_window_as_if_it_had_not_ended(
    make_spec: SpecMaker, spec: TrainSpec, tmp_path: Path, packing: bool
) -> None:
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"packing": packing})})
    whole = started(spec, tmp_path / "whole")
    for _advance in range(3):  # the third is in the middle of the second window
        whole.advance(lambda run: run.step == 3 and _saved(run, tmp_path / "state"))
    expected, report = weights(whole), whole.metrics
    whole.close()
    again = started(spec, tmp_path / "again")
    again.load(tmp_path / "state")
    assert again.step == 3
    while not again.done:
        again.advance()
    for name, tensor in weights(again).items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
    assert again.metrics["validation"] == report["validation"]
    assert again.metrics["epoch"] == report["epoch"]
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "whole")[3:]
    again.close()


def _saved(run: TrainingRun, folder: Path) -> None:
    folder.mkdir()
    run.save(folder)


def test_nothing_of_the_rows_to_learn_from_is_stored(
    spec: TrainSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(TokenStore, "training")
    run = started(spec, tmp_path / "run")
    losses = []
    while not run.done:
        losses.append(run.advance()["train"]["loss"])
    assert losses[-1] < losses[0]
    assert run.train_counts.rows == 16
    assert run.inputs.same_rows is None
    (_entry,) = (tmp_path / "cache" / "rows").glob("*/rows.arrow")
    run.close()


@pytest.mark.parametrize("packing", [False, True])
def test_trials_of_an_actor_each_begin_at_the_streams_start(
    spec: TrainSpec, tmp_path: Path, packing: bool
) -> None:
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"packing": packing})})
    folders = [tmp_path / "study" / "trials" / name for name in ("T000", "T001")]
    worker = trial(spec, folders[0])
    while not (first := worker.train())["done"]:
        pass
    worker.reset_config(configured(spec, folders[1]))
    while not (second := worker.train())["done"]:
        pass
    worker.stop()
    assert first["validation"] == second["validation"]
    assert rows_of(folders[0]) == rows_of(folders[1])


def test_rows_that_changed_are_refused_by_who_goes_on(
    spec: TrainSpec, rows_file: Path, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_bytes(rows_file.read_bytes())
    data = spec.data.model_copy(update={"train": str(train)})
    spec = spec.model_copy(update={"data": data})
    run = started(spec, tmp_path / "run")
    run.advance()
    _saved(run, tmp_path / "state")
    run.close()
    with train.open("a") as file:
        file.write(rows_file.read_text().splitlines()[0] + "\n")
    again = started(spec, tmp_path / "run")
    with pytest.raises(InputError, match=r"its rows .* have changed since it began"):
        again.load(tmp_path / "state")
    again.close()


def test_a_bad_row_behind_ends_the_trial_with_its_place_and_keeps_the_checkpoint(
    spec: TrainSpec, rows_file: Path, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    lines = rows_file.read_text().splitlines() * 2
    train.write_text("\n".join([*lines, '{"prompt": "p", "target": ""}']) + "\n")
    data = spec.data.model_copy(update={"train": str(train)})
    folder = tmp_path / "study" / "trials" / "T000"
    worker = trial(spec.model_copy(update={"data": data}), folder)
    worker.train(), worker.train()
    with pytest.raises(InputError, match=r"train\.jsonl: line 33: its target is empty"):
        worker.train()
    worker.stop()
    assert (folder / "checkpoints" / "step-00000004").is_dir()
    assert "line 33: its target is empty" in (folder / "error.txt").read_text()
