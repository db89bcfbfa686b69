"""The figures that a run reports, by path: what trials can be compared on. No torch."""

from collections.abc import Iterable

from workers.config.losses import AUXILIARY
from workers.config.train import TrainSpec

SMALLER_IS_BETTER = frozenset(
    (
        *("loss", "cross_entropy", *AUXILIARY),
        *("skipped_steps", "exchanged_bytes_per_step"),
    )
)
"""Last parts of the paths; of what is in neither set, either may be wanted."""
LARGER_IS_BETTER = frozenset(("score", "value", "tokens_per_second"))


def reported(spec: TrainSpec) -> list[str]:
    """Those that need no look at rows or model. The others: `of_tasks`, `of_routers`."""
    names = ["validation/loss", "train/loss", "train/cross_entropy"]
    names += ["validation/score"] if spec.evaluation.generate else []
    if spec.adapter.is_routed:
        names += [f"train/{name}" for name in spec.loss.enabled()]
        if spec.parallel.ep_size > 1:
            names.append("train/exchanged_bytes_per_step")
    return [
        *names,
        *(f"train/{name}" for name in ("grad_norm", "lr", "tokens_per_second", "skipped_steps")),
        *("epoch", "step"),
    ]


def of_tasks(spec: TrainSpec, tasks: Iterable[str]) -> list[str]:
    """Of these tasks, the validation rows'."""
    measured = ("loss", "rows", *(("value",) if spec.evaluation.generate else ()))
    return [f"validation/tasks/{task}/{name}" for task in tasks for name in measured]


def of_routers(places: Iterable[str]) -> list[str]:
    """Of the routers at these places."""
    return [f"validation/routing/{place}/entropy" for place in places]
