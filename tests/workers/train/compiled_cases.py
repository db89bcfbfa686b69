"""What runs on compiled layers are held to: the same on layers as they are written."""

import pytest
from torch import Tensor

from workers.run.record import Metrics
from workers.train.loop import TrainingRun

Trained = tuple[list[dict[str, float]], dict[str, Tensor]]
"""A run's losses, report by report, and its weights at the end."""
LOSSES = {"loss__z_loss_weight": 1e-3, "loss__contrastive_weight": 0.01}
STEPS = {"optimizer__name": "sgd", "optimizer__lr": 0.5, "optimizer__micro_batch_size": 2}


def figures(report: Metrics) -> dict[str, float]:
    """A report's losses."""
    train = {k: v for k, v in report["train"].items() if k != "tokens_per_second"}
    return {**train, "validation": report["validation"]["loss"]}


def trained(run: TrainingRun) -> Trained:
    """Its reports' losses, and its weights."""
    losses = []
    while not run.done:
        losses.append(figures(run.advance()))
    return losses, {name: one.clone() for name, one in run.adapter.state_dict().items()}


def assert_alike(found: Trained, expected: Trained, fresh: dict[str, Tensor]) -> None:
    """To the rounding of float32, in losses and in how far weights have moved from `fresh`."""
    for report, other in zip(found[0], expected[0], strict=True):
        assert report == pytest.approx(other, rel=1e-5)
    for name, tensor in expected[1].items():
        moved = (tensor - fresh[name]).norm()
        assert (found[1][name] - tensor).norm() <= 1e-4 * moved + 1e-7, name
