"""One run of a job's own fields, anew or from an adapter, in both ways to start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.session import Session
from orchestrator.config.job import JobSpec, override_job
from orchestrator.registry.registry import Registry
from orchestrator.tuning.lifecycle import resume_command
from orchestrator.tuning.one_run import is_one_run, one_run, trained_on
from orchestrator.tuning.preflight import preflight
from orchestrator.tuning.study import Study
from orchestrator.tuning.tuner import run
from tests.orchestrator.conftest import Play
from workers.adapter import files
from workers.adapter.convert import Format, export_folder
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun


@pytest.fixture(scope="module")
def start(
    make_spec: Callable[..., TrainSpec], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """An adapter that has learned something, and its loss; in a shape that the job has not."""
    folder = tmp_path_factory.mktemp("start")
    shape = {"adapter__num_experts": 2, "adapter__rank": 8, "adapter__alpha": 4}
    spec = make_spec(optimizer__steps=20, evaluation__every=20, **shape)
    training = TrainingRun(spec, RunPlan(folder / "run", "before"))
    loss = training.advance()["validation"]["loss"]
    training.save_adapter(folder / "adapter")
    training.close()
    return folder / "adapter", loss


@pytest.fixture
def tiny(make_spec: Callable[..., TrainSpec], tmp_path: Path) -> JobSpec:
    """A job with a search."""
    values: dict[str, Any] = {
        "name": "tiny",
        "train": make_spec().model_dump(),
        "search": {"trials": 5, "max_concurrent": 2},
        "cluster": {"storage": str(tmp_path / "runs")},
    }
    return JobSpec.model_validate(values)


def test_one_run_searches_nothing(tiny: JobSpec) -> None:
    single = one_run(tiny)
    assert is_one_run(single)
    assert not is_one_run(tiny)
    assert single.train == tiny.train
    assert [*single.search_space().samples()] == [tiny.train]
    assert one_run(single) == single
    preflight(single, resume=False)


def test_a_run_takes_the_shape_that_it_begins_with(
    tiny: JobSpec, start: tuple[Path, float]
) -> None:
    job = trained_on(tiny, start[0])
    adapter = job.train.adapter
    assert (adapter.num_experts, adapter.rank, adapter.alpha) == (2, 8, 4)
    preflight(one_run(override_job(job, {"adapter.dropout": 0.2}, "test")), resume=False)
    job = override_job(job, {"adapter.rank": 16}, "test")
    with pytest.raises(InputError, match=r"adapter: cannot be trained on as adapter\.rank 16: it"):
        preflight(one_run(job), resume=False)


@pytest.mark.parametrize("scale", [{"alpha": 32.0}, {"goat_lr_ratio": 1.0}], ids=str)
def test_a_run_may_scale_by_another_rule(
    scale: dict[str, float], tiny: JobSpec, start: tuple[Path, float], tmp_path: Path
) -> None:
    """The updates s B A are what they were."""
    changes = {f"adapter.{field}": value for field, value in scale.items()}
    job = one_run(override_job(trained_on(tiny, start[0]), changes, "test"))
    preflight(job, resume=False)
    onward = TrainingRun(job.train, RunPlan(tmp_path / "onward", "tiny"))
    before, after = files.read(start[0]), onward.adapter.state_dict()
    for name, tensor in before.tensors.items():
        ratio = 1.0
        if name.endswith("lora_B"):
            width = before.tensors[name.replace("lora_B", "lora_A")].shape[-1]
            ratio = job.train.adapter.scale(width) / before.spec.scale(width)
            assert ratio != 1
        torch.testing.assert_close(ratio * after[name], tensor)
    onward.close()


@pytest.mark.parametrize("form", ["mixlora", "peft"])
def test_an_adapter_from_elsewhere_is_trained_on(
    form: Format, tiny: JobSpec, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    plain = {"adapter__num_experts": 1, "adapter__top_k": 1} if form == "peft" else {}
    first = TrainingRun(make_spec(**plain), RunPlan(tmp_path / "first", "before"))
    first.save_adapter(tmp_path / "adapter")
    first.close()
    export_folder(tmp_path / "adapter", tmp_path / "theirs", form)
    job = one_run(trained_on(tiny, tmp_path / "theirs"))
    preflight(job, resume=False)
    onward = TrainingRun(job.train, RunPlan(tmp_path / "onward", "tiny"))
    before, after = files.read(tmp_path / "adapter").tensors, onward.adapter.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_search_over_shapes_cannot_begin_with_one(
    tiny: JobSpec, start: tuple[Path, float]
) -> None:
    space = {"optimizer.lr": {"log": [1e-4, 1e-2]}}
    job = trained_on(override_job(tiny, {"search.space": space}, "test"), start[0])
    preflight(job, resume=False)
    shapes = {"search.space": space | {"adapter.rank": {"choice": [8, 16]}}}
    with pytest.raises(InputError, match=r"as adapter\.rank 16: it has 8"):
        preflight(override_job(job, shapes, "test"), resume=False)


def test_what_was_cut_off_is_gone_on_with_as_it_began(job: JobSpec, play: Play) -> None:
    tuned = override_job(job, {"name": "tuned"}, "test")
    for one, command in ((one_run(job), "train"), (tuned, "tune")):
        play(one, ["cut"])
        study = Study.open(one.cluster, one.name)
        again = f"moetune {command} {study.folder}/job.json --resume"
        assert resume_command(study, one.cluster) == again


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_begins_with_an_adapter_and_becomes_a_version(
    workers: int, tiny: JobSpec, start: tuple[Path, float], ray_cluster: Session
) -> None:
    folder, loss = start
    changes = {"optimizer.lr": 1e-9, "optimizer.steps": 2, "parallel.workers": workers}
    job = one_run(override_job(trained_on(tiny, folder), changes, "test"))
    preflight(job, resume=False)
    study = run(job)
    row = study.best()
    assert row is not None
    assert row.value == pytest.approx(loss, rel=1e-4), "nothing was learned since"
    registry = Registry(job.store_url(), job.cluster.storage)
    version = registry.version(study.version())
    spec = registry.manifest(version).spec
    assert spec is not None
    assert spec["start_from"] == str(folder), "its lineage"
    assert run(job, resume=True).leaderboard() == study.leaderboard()
