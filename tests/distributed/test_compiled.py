"""Runs on layers that torch's own compiler has made. It takes half a minute for the first one;
those after it find what it has written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.session import Session
from orchestrator.tuning.trainer import fit
from tests.workers.train.compiled_cases import LOSSES, STEPS, assert_alike, figures, trained
from tests.workers.train.one_trial import configured, trial
from workers.adapter import files
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.events import read_events
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


def test_an_actor_compiles_for_each_of_its_trials(
    ray_cluster: Session, make_spec: SpecMaker, tmp_path: Path
) -> None:
    """Which share a base."""
    worker = None
    for name, lr in (("T000", 0.5), ("T001", 0.25)):
        changes = {**STEPS, **LOSSES, "optimizer__lr": lr}
        folder = tmp_path / "study" / "trials" / name
        spec = make_spec(model__compile=True, **changes)
        worker = worker or trial(spec, folder)
        worker.reset_config(configured(spec, folder))
        reports = [worker.train()]
        while not reports[-1]["done"]:
            reports.append(worker.train())
        (said,) = [one.message for one in read_events(folder) if one.kind == "compile"]
        assert said.startswith("decoder layers, in ")
        run = TrainingRun(make_spec(**changes), RunPlan(tmp_path / name, "study"))
        fresh = {weight: one.clone() for weight, one in run.adapter.state_dict().items()}
        expected = trained(run)
        found = files.read(folder / "adapter").tensors
        assert_alike(([figures(one) for one in reports], found), expected, fresh)
    assert worker
    worker.stop()


def test_two_workers_train_on_compiled_layers(
    ray_cluster: Session, make_spec: SpecMaker, tmp_path: Path
) -> None:
    """With these losses the layers' graphs are those of the actor's trials. The contrastive one
    compares tokens of one worker, and may not show."""
    plain = {"optimizer__name": "sgd", "optimizer__lr": 0.5}  # Adam magnifies rounding
    changes = {"parallel__workers": 2, **plain, **LOSSES, "loss__contrastive_weight": 1e-9}
    plan = RunPlan(tmp_path / "run", "study")
    adapter, last = fit(make_spec(model__compile=True, **changes), plan)
    (said,) = [one.message for one in read_events(plan.folder) if one.kind == "compile"]
    assert said.startswith("decoder layers, in ")
    (tmp_path / "alone").mkdir()
    alone = TrainingRun(make_spec(**changes), RunPlan(tmp_path / "alone", "study"), world=World())
    while not alone.done:
        expected = alone.advance()
    assert last["train"]["loss"] == pytest.approx(expected["train"]["loss"], rel=1e-5)
    assert last["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=1e-5)
    tensors = files.read(adapter).tensors
    for name, tensor in alone.adapter.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=0)
