"""A study's trials learn from the same rows and base, and so does a run that is gone on with."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from workers.adapter.manifest import read_manifest
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.record import RunPlan
from workers.train.checkpoint.manager import CheckpointManager
from workers.train.loop import TrainingRun
from workers.train.used import (
    UsedInputs,
    dtype_file,
    hold_dtype,
    hold_to_study,
    note_used,
    read_used,
    used_file,
)

SpecMaker = Callable[..., TrainSpec]


@pytest.fixture
def spec(make_spec: SpecMaker, tiny_model_dir: Path, rows_file: Path, tmp_path: Path) -> TrainSpec:
    """A run whose rows and base are its own."""
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    rows = shutil.copy(rows_file, tmp_path / "rows.jsonl")
    sources = {"data__train": str(rows), "data__validation": str(rows)}
    return make_spec(model__path=str(tmp_path / "base"), optimizer__steps=4, **sources)


def test_several_sources_have_a_file_of_their_own(spec: TrainSpec, tmp_path: Path) -> None:
    rows = spec.data.validation
    several = [override(spec, {"data.train": one}, "test") for one in ([rows], [rows, rows])]
    files = {used_file(tmp_path, one) for one in (spec, *several)}
    assert len(files) == 3
    assert used_file(tmp_path, override(spec, {}, "test")) == used_file(tmp_path, spec)


def test_the_first_of_a_study_settles_its_precision(spec: TrainSpec, tmp_path: Path) -> None:
    study, mine = tmp_path / "study", spec.model.model_copy(update={"dtype": "bfloat16"})
    first = hold_dtype(study, spec, mine)
    assert first.model == mine
    later = spec.model.model_copy(update={"dtype": "float32"})
    assert hold_dtype(study, spec, later) == first, "whatever its own device computes"
    explicit = override(spec, {"model.dtype": "float32"}, "test")
    assert hold_dtype(study, explicit, explicit.model) == explicit
    dtype_file(study).write_text("float17")
    with pytest.raises(InputError, match=r"inputs/dtype: .*dtype: .*float17"):
        hold_dtype(study, spec, mine)


def change_rows(spec: TrainSpec) -> None:
    row = {"prompt": "stop all", "target": "set(room=all, to=off)", "task": "call"}
    with Path(spec.data.train).open("a") as file:
        file.write(json.dumps(row) + "\n")


def change_base(spec: TrainSpec) -> None:
    path = Path(spec.model.path, "model.safetensors")
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_first_of_a_study_says_what_all_learn_from(tmp_path: Path) -> None:
    first, path = UsedInputs(data="rows", base="base"), tmp_path / "study" / "inputs" / "a.json"
    assert read_used(path) is None
    hold_to_study(path, first)
    hold_to_study(path, first)
    assert read_used(path) == first
    with pytest.raises(InputError, match=r"its rows .* have changed since it began"):
        hold_to_study(path, UsedInputs(data="others", base="base"))
    with pytest.raises(InputError, match="its base model has changed since it began"):
        hold_to_study(path, UsedInputs(data="rows", base="another"))
    assert list(path.parent.iterdir()) == [path]
    path.write_text("{")
    with pytest.raises(InputError, match=r"a.json: is damaged"):
        read_used(path)


def test_a_folder_without_hard_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    first, path = UsedInputs(data="rows", base="base"), tmp_path / "inputs" / "a.json"
    for data in ("rows", "others"):
        note_used(path, UsedInputs(data=data, base="base"))
        assert read_used(path) == first
    assert list(path.parent.iterdir()) == [path]


def test_a_search_space_may_vary_rows_and_base(spec: TrainSpec, tmp_path: Path) -> None:
    other = override(spec, {"data.train": "other.jsonl"}, "test")
    hold_to_study(used_file(tmp_path, spec), UsedInputs(data="rows", base="base"))
    hold_to_study(used_file(tmp_path, other), UsedInputs(data="others", base="base"))
    with pytest.raises(InputError, match="its rows"):
        hold_to_study(used_file(tmp_path, spec), UsedInputs(data="others", base="base"))


@pytest.mark.parametrize(
    ("change", "said"), [(change_rows, "its rows .* have changed"), (change_base, "its base model")]
)
def test_a_run_goes_on_with_nothing_else_than_it_began(
    spec: TrainSpec, tmp_path: Path, change: Callable[[TrainSpec], None], said: str
) -> None:
    plan = RunPlan(tmp_path / "run", "study")
    run = TrainingRun(spec, plan, world=World())
    checkpoints = CheckpointManager(spec, plan, World())
    run.advance()
    checkpoints.after_report(run)
    change(spec)
    again = TrainingRun(spec, plan, world=World())
    with pytest.raises(InputError, match=said):
        CheckpointManager(spec, plan, World()).resume(again)
    assert again.step == 0
    again.close()


def test_rows_that_were_agreed_to_are_named_in_the_manifest(
    spec: TrainSpec, tmp_path: Path
) -> None:
    plan = RunPlan(tmp_path / "run", "study", shared=tmp_path)
    run = TrainingRun(spec, plan, world=World())
    run.advance()
    (tmp_path / "checkpoint").mkdir()
    run.save(tmp_path / "checkpoint")
    before = run.inputs.used
    change_rows(spec)
    again = TrainingRun(spec, plan, world=World())
    now = again.inputs.used
    agreed = now.model_copy(update={"earlier_data": (before.data,)})
    note_used(used_file(tmp_path, spec), agreed)
    again.load(tmp_path / "checkpoint")
    assert again.step == run.step
    again.advance()
    again.save_adapter(tmp_path / "adapter")
    manifest = read_manifest(tmp_path / "adapter")
    assert manifest is not None
    assert (manifest.data_digest, manifest.earlier_data) == (now.data, (before.data,))
