"""Trials of one worker, as Tune drives them: what is left on the disk, and going on from it."""

import fcntl
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator.registry.trained_base import in_training
from tests.workers.train.one_trial import OneTrial, trial
from workers.adapter import files
from workers.adapter.manifest import read_manifest
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.files import write_text
from workers.run.record import Metrics, RunPlan, read_progress
from workers.run.samples import read_samples
from workers.train.attempt import Attempt
from workers.train.evaluation.baseline import baseline
from workers.train.evaluation.expert_tasks import evaluate_folder
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.used import dtype_file, used_file

SpecMaker = Callable[..., TrainSpec]


def to_the_end(worker: OneTrial) -> list[Metrics]:
    reports = [worker.train()]
    while not reports[-1]["done"]:
        reports.append(worker.train())
    worker.stop()
    return reports


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "studies" / "study"


@pytest.fixture
def folder(study: Path) -> Path:
    return study / "trials" / "T000"


def test_a_trial_computes_and_is_served_in_the_precision_that_its_study_began_with(
    make_spec: SpecMaker, study: Path, folder: Path
) -> None:
    """A GPU settled it; this worker has none."""
    dtype_file(study).parent.mkdir(parents=True)
    dtype_file(study).write_text("bfloat16\n")
    spec = make_spec(optimizer__steps=2, model__device="auto")
    assert spec.model.dtype == "auto"
    worker = trial(spec, folder)
    worker.train()
    assert worker._attempt
    run = worker._attempt.run
    assert run.inputs.base.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {one.dtype for one in run.adapter.parameters()} == {torch.float32}
    worker.stop()
    assert json.loads((folder / "train.json").read_text())["model"]["dtype"] == "bfloat16"
    manifest = read_manifest(folder / "adapter")
    assert manifest
    assert in_training("a version", manifest).dtype == "bfloat16"
    same = TrainSpec.model_validate(manifest.spec)
    assert spec.same_run(same)
    assert same.same_run(spec)
    assert not override(spec, {"model.dtype": "float32"}, "test").same_run(same)


def uploading(make_spec: SpecMaker, tmp_path: Path, **changes: object) -> TrainSpec:
    """Its URI ends with a query, as an object store's does."""
    place = f"file://{tmp_path}/bucket?use_mmap=true"
    return make_spec(optimizer__steps=6, checkpoint__upload=place, **changes)


@pytest.mark.parametrize(
    ("every", "keep", "kept"), [(None, 2, [4, 6]), (None, 9, [2, 4, 6]), (3, 2, [3, 6])]
)
def test_checkpoints_are_made_kept_and_uploaded(
    make_spec: SpecMaker,
    tmp_path: Path,
    folder: Path,
    every: int | None,
    keep: int,
    kept: list[int],
) -> None:
    spec = uploading(make_spec, tmp_path, checkpoint__every=every, checkpoint__keep=keep)
    reports = to_the_end(trial(spec, folder))
    assert [report["step"] for report in reports] == [2, 4, 6]
    assert steps(folder / "checkpoints") == kept
    there = tmp_path / "bucket" / "study" / "T000"
    assert steps(there)[-1] == 6, "the last one at least; who is late is left out"
    assert set(steps(there)) <= set(kept)
    assert (there / "step-00000006" / "complete.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if "bucket" in path.name] == ["bucket"]
    started, attention, same, finished = read_events(folder)
    kinds = [one.kind for one in (started, attention, same, finished)]
    assert kinds == ["started", "attention", "data", "finished"]
    assert attention.message.startswith("sdpa: torch's own")
    assert same.message.startswith("16 of 16 validation rows are training rows too (the first: ")


def test_a_trial_that_lost_its_folder_goes_on_from_the_upload(
    make_spec: SpecMaker, tmp_path: Path, folder: Path
) -> None:
    spec = uploading(make_spec, tmp_path)
    whole = to_the_end(trial(spec, folder))
    expected = files.read(folder / "adapter").tensors
    shutil.rmtree(tmp_path / "bucket")
    shutil.rmtree(folder.parent)

    cut_off = trial(spec, folder)
    cut_off.train()
    attempt = cut_off._attempt
    assert attempt
    attempt.checkpoints.finish()  # the copy is made beside training
    shutil.rmtree(folder)
    again = to_the_end(trial(spec, folder))
    assert [report["step"] for report in again] == [4, 6]
    assert again[-1]["validation"] == whole[-1]["validation"]
    for name, tensor in files.read(folder / "adapter").tensors.items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("lost", [False, True], ids=["folder there", "folder lost"])
def test_a_trial_that_ended_before_it_could_say_so_says_it_again(
    make_spec: SpecMaker, tmp_path: Path, folder: Path, lost: bool
) -> None:
    spec = uploading(make_spec, tmp_path)
    first = to_the_end(trial(spec, folder))
    if lost:
        shutil.rmtree(folder)
    (again,) = to_the_end(trial(spec, folder))
    assert again["done"]
    for part in ("step", "validation", "train"):
        assert again[part] == first[-1][part]
    assert [report["step"] for report in read_progress(folder)] == ([6] if lost else [2, 4, 6])
    assert files.read(folder / "adapter").tensors


def test_a_trial_that_is_stopped_leaves_no_thread(
    make_spec: SpecMaker, tmp_path: Path, folder: Path
) -> None:
    worker = trial(uploading(make_spec, tmp_path), folder)
    worker.train()
    worker.reset_config({})
    uploads = [t for t in threading.enumerate() if t.name == "moetune-uploads"]
    for thread in uploads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in uploads)


def test_the_base_is_measured_once_a_study_and_kept_with_every_adapter(
    make_spec: SpecMaker, study: Path
) -> None:
    spec = make_spec(
        evaluation__generate=True,
        evaluation__batch_size=4,  # fewer than there are answers: they come in continuous batches
        adapter__dropout=0.2,
        optimizer__lr=2e-2,
    )
    folders = [study / "trials" / name for name in ("T000", "T001")]
    file = used_file(study, spec).with_suffix(".base.json")
    written = set()
    for folder in folders:
        to_the_end(trial(spec, folder))
        written.add(file.stat().st_mtime_ns)
    assert len(written) == 1
    (known,) = [json.loads(file.read_text())["metrics"]]
    reference = evaluate_folder(spec, None)
    assert known["validation"] == reference
    assert {"loss", "score", "tasks"} == reference.keys()
    first, second = (files.read(folder / "adapter") for folder in folders)
    for one in (first, second):
        assert one.manifest
        assert one.manifest.base_metrics == known
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), "measuring changes nothing"
    bare = read_samples(file.with_suffix(".samples.json"))
    taught = read_samples(folders[0] / "samples.json")
    assert [one.question for one in bare] == [one.question for one in taught]
    assert len(bare) == 6
    assert bare != taught


def test_who_comes_while_another_run_measures_the_base_waits_for_it(
    make_spec: SpecMaker, study: Path
) -> None:
    spec = make_spec()
    run = TrainingRun(spec, RunPlan(study / "trials" / "T000", "study", shared=study))
    file = used_file(study, spec).with_suffix(".base.json")
    file.parent.mkdir(parents=True)
    told: list[Metrics] = []
    waiting = threading.Thread(target=lambda: told.append(baseline(run)), daemon=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        waiting.join(timeout=1.5)
        assert waiting.is_alive()
        metrics = {"validation": {"loss": 3.5}}
        used = run.inputs.used.model_dump(mode="json")
        write_text(file, json.dumps({"used": used, "metrics": metrics}))  # whole at once
    waiting.join(timeout=30)
    assert told == [metrics]
    file.write_text(json.dumps({"used": {**used, "data": "other"}, "metrics": metrics}))
    assert baseline(run) != metrics, "of other rows"


@pytest.mark.parametrize("side", ["train", "validation"])
@pytest.mark.parametrize("of_a_group", [False, True], ids=["actor", "group"])
def test_a_run_whose_rows_changed_while_they_were_read_can_be_tried_again(
    make_spec: SpecMaker,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    side: str,
    of_a_group: bool,
) -> None:
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "rows.jsonl"
    shutil.copy(getattr(make_spec().data, side), source)
    spec = make_spec(**{f"data__{side}": str(source)})
    worker = trial(spec, folder)
    task = worker.task("T000", worker.config)

    def begin() -> None:
        if not of_a_group:
            worker.train()
            return
        record = task.record()
        record.begin(task.spec)
        Attempt.begin(TrainingRun(task.spec, task.plan), record).close()

    def changed(self: Inputs, *_: object) -> None:
        source.write_text(source.read_text().replace("kitchen", "library"))
        encode(self)

    encode = Inputs.encode
    with monkeypatch.context() as patch:
        patch.setattr(Inputs, "encode", changed)
        with pytest.raises(InputError, match=r"rows\.jsonl: has changed while it was read"):
            begin()
    begin()
    worker.stop()


def test_a_run_on_fused_norms_says_so_and_learns_the_same(
    make_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""
    losses = []
    for fused in (False, True):
        monkeypatch.setattr("workers.models.base.wants_fused_norms", lambda *_, fused=fused: fused)
        folder = tmp_path / f"study-{fused}" / "trials" / "T000"
        reports = to_the_end(trial(make_spec(model__dtype="float32"), folder))
        losses.append([report["validation"]["loss"] for report in reports])
        said = [one.message for one in read_events(folder) if one.kind == "norms"]
        assert said == ["5 RMS norms are torch's fused ones"] * fused
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
