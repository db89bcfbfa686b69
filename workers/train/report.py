"""What a report of a run holds of its steps, and that all of it is finite."""

import math
from collections.abc import Mapping
from typing import Any

from workers.run.record import Metrics
from workers.train.step import DivergedError, StepResult


def summary(results: list[StepResult], seconds: float, before: Metrics) -> Metrics:
    """Means over the steps of one report that were not left out, and how many were; without any,
    the means are still those of the report before. The learning rate is the last step's."""
    taken = [result for result in results if not result.fault]
    names = results[-1].losses if taken else ()
    means = {name: math.fsum(r.losses[name] for r in taken) / len(taken) for name in names}
    if taken:
        means["grad_norm"] = math.fsum(result.grad_norm for result in taken) / len(taken)
    return {
        **before,
        **means,
        "lr": results[-1].lr,
        "tokens_per_second": sum(result.tokens for result in results) / seconds,
        "skipped_steps": len(results) - len(taken),
    }


def check_finite(metrics: Mapping[str, Any], step: int, path: str = "") -> None:
    """A search would wait for ever for a trial whose metric is no number."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            check_finite(value, step, f"{path}{name}/")
        elif isinstance(value, float) and not math.isfinite(value):
            raise DivergedError(f"training diverged: {path}{name} is {value} after step {step}")
