"""Both ways to start the train loop on a cluster: a Ray Train group, and reused Tune actors."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.session import Session
from orchestrator.config.job import JobSpec
from orchestrator.tuning.trainer import fit, trial_trainable
from search_spaces.spec import SearchSpec
from workers.adapter import files
from workers.config.base import InputError
from workers.config.metrics import value_at
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run import heartbeat
from workers.run.events import read_events
from workers.run.heartbeat import ENDED
from workers.run.record import Metrics, RunPlan, read_progress
from workers.run.samples import read_samples
from workers.train.loop import TrainingRun

BEGUN = ("started", "resumed")
"""Events with which an attempt at a run begins."""
SpecMaker = Callable[..., TrainSpec]


def alone(spec: TrainSpec, folder: Path) -> tuple[TrainingRun, list[Metrics]]:
    """The run in this process."""
    run, reports = TrainingRun(spec, RunPlan(folder, "study"), world=World()), []
    while not run.done:
        reports.append(run.advance())
    return run, reports


def test_two_ray_train_workers_equal_one_process(
    ray_cluster: Session, make_spec: SpecMaker, tmp_path: Path
) -> None:
    def spec(workers: int, **more: object) -> TrainSpec:
        return make_spec(
            optimizer__lr=5e-4,  # Adam makes a whole step of the rounding of a gradient near zero
            optimizer__micro_batch_size=4 // workers,
            evaluation__generate=True,
            parallel__workers=workers,
            **more,
        )

    expected, reports = alone(spec(1), tmp_path / "alone")
    told: list[Metrics] = []
    plan = RunPlan(tmp_path / "run", "study")
    adapter, last = fit(spec(2), plan, on_progress=told.append)

    assert told == read_progress(plan.folder)
    assert last == told[-1]
    for ours, theirs in zip(told, reports, strict=True):
        for path in ("step", "train/loss", "train/load_balance", "validation/loss"):
            assert value_at(ours, path) == pytest.approx(value_at(theirs, path), rel=1e-5)
        assert ours["validation"]["score"] == theirs["validation"]["score"]
    assert read_samples(plan.folder / "samples.json") == expected.samples
    base = read_samples(plan.folder / "base.samples.json")
    assert [one.question for one in base] == [one.question for one in expected.samples]
    saved = files.read(adapter)
    for name, tensor in expected.adapter.state_dict().items():
        torch.testing.assert_close(saved.tensors[name], tensor, atol=1e-5, rtol=0)
    assert TrainSpec.model_validate_json((plan.folder / "train.json").read_text()) == spec(
        2, model__dtype="float32"
    )
    assert not (plan.folder / "error.txt").exists()
    with pytest.raises(InputError, match="holds a run with another specification"):
        fit(spec(2, seed=1), plan)


def test_a_group_that_fails_says_why(
    ray_cluster: Session, make_spec: SpecMaker, tmp_path: Path
) -> None:
    spec = make_spec(parallel__workers=2, data__max_length=8)
    with pytest.raises(InputError, match=r"run: .*rows\.jsonl: line \d+: its target .* no room"):
        fit(spec, RunPlan(tmp_path / "run", "study"), SearchSpec(retries=0))
    assert "leaves no room" in (tmp_path / "run" / "error.txt").read_text()
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_group_ends_early_and_leaves_its_best(
    ray_cluster: Session, make_spec: SpecMaker, tmp_path: Path
) -> None:
    """Its learning rate is watched: with a warm-up it rises and falls, on every machine alike. A
    worker is killed while the group waits, unless it was faster than we are."""
    spec = make_spec(
        optimizer__name="sgd",  # Adam magnifies rounding
        optimizer__lr=0.5,
        optimizer__steps=12,
        optimizer__warmup_steps=4,
        optimizer__early_stopping={"patience": 2},
        evaluation__every=2,
        parallel__workers=2,
    )
    plan = RunPlan(tmp_path / "run", "study")
    search = SearchSpec(metric="train/lr", mode="max", retries=1)

    def kill(report: Metrics) -> None:
        alive = [w.pid for w in heartbeat.read(plan.folder) if w.pid and w.phase != ENDED]
        if report["step"] == 6 and alive:
            with suppress(ProcessLookupError):
                os.kill(alive[0], signal.SIGKILL)

    adapter, report = fit(spec, plan, search, kill)
    assert report["step"] == 4
    last = read_progress(plan.folder)[-1]
    assert last["step"] == 8
    assert last["early_stopping"] == {
        "best": pytest.approx(0.5), "best_step": 4, "waited": 2, "stopped": 1,
    }  # fmt: skip
    ended = read_events(plan.folder)[-1]
    assert (ended.kind, ended.message.split(":")[0]) == ("finished", "stopped early")
    saved = files.read(adapter)
    assert saved.manifest
    assert saved.manifest.metrics == report
    run = TrainingRun(spec, RunPlan(tmp_path / "alone", "study"), world=World())
    run.advance()
    run.advance()
    for name, tensor in run.adapter.state_dict().items():
        torch.testing.assert_close(saved.tensors[name], tensor, atol=1e-5, rtol=0)
    before = {name: tensor.clone() for name, tensor in run.adapter.state_dict().items()}
    run.advance()
    moved = (tensor - before[name] for name, tensor in run.adapter.state_dict().items())
    assert max(float(one.abs().max()) for one in moved) > 1e-3, "later ones are others"


class KilledOnce:
    """Mixed into a trainable: T001's process dies at its second report, the first time."""

    def step(self: Any) -> Metrics:
        marker = self.task("T001", {}).plan.folder / "killed"
        if self.trial_name == "T001" and self.iteration == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(super().step())  # type: ignore[misc]


def test_trials_of_one_worker_share_an_actor_and_go_on_after_a_kill(
    ray_cluster: Session, make_spec: SpecMaker, tmp_path: Path
) -> None:
    spec = make_spec(adapter__dropout=0.1, optimizer__steps=6)
    job = job_of(spec, tmp_path)
    configs = [
        {"adapter.rank": 2},
        {"adapter.num_experts": 2, "adapter.top_k": 1},
        {"adapter.rank": 2},
        {"optimizer.lr": 1e30, "optimizer.max_grad_norm": None},
    ]
    trainable = trial_trainable(job)
    killed = type("Trial", (KilledOnce, trainable), {})
    results = tune_trials(killed, configs, tmp_path, retries=3)

    trials = job.study_folder() / "trials"
    events = [read_events(trials / f"T00{number}") for number in range(4)]
    assert [r.error is not None for r in results] == [False, False, False, True], events
    assert "diverged" in (trials / "T003" / "error.txt").read_text()
    assert (trials / "T001" / "killed").exists()
    assert not (trials / "T001" / "error.txt").exists()
    for number in range(3):
        folder = trials / f"T00{number}"
        expected, reports = alone(
            TrainSpec.model_validate_json((folder / "train.json").read_text()), tmp_path / "alone"
        )
        assert list(map(figures, read_progress(folder))) == list(map(figures, reports))
        assert results[number].metrics["step"] == 6
        assert results[number].metrics["folder"] == str(folder)
        saved = files.read(folder / "adapter")
        assert saved.manifest is not None
        assert saved.manifest.trial == number
        for name, tensor in expected.adapter.state_dict().items():
            assert torch.equal(saved.tensors[name], tensor), name
    # Each attempt but the first of a trial follows a process that died; a loaded machine may kill
    # more of them than we do.
    attempts = [sum(event.kind in BEGUN for event in told) for told in events[:3]]
    processes = [result.metrics["pid"] for result in results[:3]]
    assert attempts[1] > 1
    assert processes[0] != processes[1]
    assert len({*processes}) <= 1 + sum(attempts) - 3, ("the actor is used again", events)


def figures(report: Metrics) -> Metrics:
    """A report without the clock."""
    train = {k: v for k, v in report["train"].items() if k != "tokens_per_second"}
    return {**report, "train": train}


def job_of(spec: TrainSpec, folder: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "study",
            "train": spec.model_dump(mode="json"),
            "cluster": {"storage": str(folder / "runs")},
        }
    )


def tune_trials(
    trainable: Any, configs: list[dict[str, Any]], folder: Path, retries: int
) -> list[Any]:
    """Run one trial after another with Ray Tune, named as a study names them."""
    from ray import tune

    names = iter(range(len(configs)))
    is_class = isinstance(trainable, type)
    tuner = tune.Tuner(
        trainable,
        param_space=tune.grid_search(configs),
        tune_config=tune.TuneConfig(
            max_concurrent_trials=1,
            reuse_actors=is_class,
            trial_name_creator=lambda trial: f"T{next(names):03d}",
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            name="tune",
            failure_config=tune.FailureConfig(max_failures=retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    return list(tuner.fit())
