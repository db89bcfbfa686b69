"""What Prometheus reads from a real cluster's metrics port."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.session import Session
from orchestrator.tuning.events import TrialEvent
from orchestrator.tuning.metrics import StudyMetrics, TrainingMetrics, series
from tests.orchestrator.prometheus import value
from workers.run.progress import Progress
from workers.run.record import Metrics

REPORT: Metrics = {
    "step": 20,
    "epoch": 0.5,
    "train": {"loss": 1.25, "tokens_per_second": 321.0},
    "validation": {
        "loss": 0.75,
        "score": 0.5,
        "routing": {
            "layers.0.mlp": {"load": [0.7, 0.2, 0.1], "entropy": 0.7},
            "layers.1.mlp": {"load": [0.25, 0.25, 0.5], "entropy": 0.9},
        },
    },
}
STEP = Progress(
    step=40,
    steps=100,
    epoch=1.0,
    workers=2,
    loss=0.5,
    auxiliary={"load_balance": 1.25},
    lr=2e-4,
    tokens_per_second=640.0,
    step_seconds=0.5,
    pause_seconds=None,
    eta_seconds=30.0,
)


@pytest.fixture
def actor(ray_cluster: Session) -> Iterator[Any]:
    """One process that observes a run after the other, as a reused Tune actor does."""
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def begin(self, trial: int | None) -> None:
            self.observe = TrainingMetrics("first light", trial)

        def report(self, report: Metrics) -> None:
            self.observe(report)

    actor = Actor.remote()
    yield actor
    ray.kill(actor)


def test_runs_appear_with_their_labels(actor: Any) -> None:
    actor.begin.remote(3)
    actor.report.remote(REPORT)
    run = {"study": "first light", "trial": "3"}
    expected = {
        "ray_moetune_loss": 1.25,
        "ray_moetune_step": 20,
        "ray_moetune_validation_loss": 0.75,
        "ray_moetune_validation_score": 0.5,
        "ray_moetune_tokens_per_second": 321.0,
    }
    for name, number in expected.items():
        assert value(name, **run) == number
    assert value("ray_moetune_expert_load", **run, layer="layers.0.mlp", expert="0") == 0.7
    assert value("ray_moetune_expert_load", **run, layer="layers.1.mlp", expert="2") == 0.5

    actor.report.remote(STEP.report())  # of one step, without an evaluation
    figures = {"load_balance": 1.25, "learning_rate": 2e-4, "step_seconds": 0.5, "workers": 2}
    for name, number in {**figures, "eta_seconds": 30.0, "steps": 100, "epoch": 1.0}.items():
        assert value(f"ray_moetune_{name}", **run) == pytest.approx(number)
    assert value("ray_moetune_loss", lambda loss: loss == 0.5, **run) == 0.5
    time.sleep(8)  # longer than Ray keeps what is not set again
    assert value("ray_moetune_validation_loss", **run) == 0.75

    actor.begin.remote(4)
    actor.report.remote({"step": 5, "train": {"loss": 9.5}})
    assert value("ray_moetune_loss", study="first light", trial="4") == 9.5
    assert value("ray_moetune_loss", lambda loss: loss is None, **run) is None, (
        "the run before has ended"
    )


def test_trials_are_counted_by_state(ray_cluster: Session) -> None:
    metrics = StudyMetrics("counted")
    metrics(TrialEvent(0, "reported", {}, states={"running": 3}))
    assert value("ray_moetune_trials", study="counted", state="running") == 3
    metrics(TrialEvent(2, "retried", {}, states={"finished": 1, "stopped": 1, "waiting": 1}))
    counts = {"running": 0, "finished": 1, "stopped": 1, "waiting": 1, "failed": 0}
    for state, count in counts.items():
        labels = {"study": "counted", "state": state}
        assert value("ray_moetune_trials", lambda got: got == count, **labels) == count  # noqa: B023


def test_every_series_has_a_name_of_ours_and_a_meaning() -> None:
    assert len({one.name for one in series()}) == len(series())
    for one in series():
        assert one.name.startswith("moetune_")
        assert one.help
