"""The figures that a run reports: which there are, which way is better, how one is read. No torch.

A metric's path leads into a report, as in `validation/tasks/home/value`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workers.config.losses import AUXILIARY
from workers.config.train import TrainSpec

Mode = Literal["min", "max"]
"""Whether a smaller or a larger value is better."""
LOSS, SCORE, VALUE = "loss", "score", "value"
"""Names of what is measured on validation rows: of all and of a task, of all, and of a task."""
VALIDATION_LOSS, VALIDATION_SCORE = f"validation/{LOSS}", f"validation/{SCORE}"
TRAINING_LOSS, TOKENS_PER_SECOND = f"train/{LOSS}", "train/tokens_per_second"
LEARNING_RATE = "train/lr"
TASK_LOSS, TASK_VALUE = f"validation/tasks/{{task}}/{LOSS}", f"validation/tasks/{{task}}/{VALUE}"

EARLY_STOPPING = "early_stopping"
BEST, BEST_STEP = f"{EARLY_STOPPING}/best", f"{EARLY_STOPPING}/best_step"
STOPPED = f"{EARLY_STOPPING}/stopped"

TITLES = {LOSS: "loss a token", SCORE: "mean of the tasks"}
"""What tables call those of all rows."""


def _generates(spec: TrainSpec) -> bool:
    return spec.evaluation.generate


def _exchanges(spec: TrainSpec) -> bool:
    return spec.adapter.is_routed and spec.parallel.ep_size > 1


def _stops_early(spec: TrainSpec) -> bool:
    return spec.optimizer.early_stopping is not None


@dataclass(frozen=True)
class Metric:
    """A figure of a run."""

    better: Mode | None = None
    """None where either may be wanted."""
    of: Callable[[TrainSpec], bool] = lambda _: True
    """Whether a run reports it."""


METRICS = {
    VALIDATION_LOSS: Metric("min"),
    TRAINING_LOSS: Metric("min"),
    "train/cross_entropy": Metric("min"),
    VALIDATION_SCORE: Metric("max", _generates),
    "train/{auxiliary}": Metric("min"),
    "train/exchanged_bytes_per_step": Metric("min", _exchanges),
    "train/grad_norm": Metric(),
    LEARNING_RATE: Metric(),
    TOKENS_PER_SECOND: Metric("max"),
    "train/skipped_steps": Metric("min"),
    "epoch": Metric(),
    "step": Metric(),
    "steps": Metric(),
    BEST: Metric(of=_stops_early),
    BEST_STEP: Metric(of=_stops_early),
    f"{EARLY_STOPPING}/waited": Metric(of=_stops_early),
    STOPPED: Metric(of=_stops_early),
    TASK_LOSS: Metric("min"),
    "validation/tasks/{task}/rows": Metric(),
    TASK_VALUE: Metric("max", _generates),
    "validation/routing/{layer}/entropy": Metric(),
}
"""By path; in braces what is of the run: a task of the validation rows, a routed layer's path, and
an auxiliary loss."""


def reported(spec: TrainSpec, tasks: Iterable[str] = (), layers: Iterable[str] = ()) -> list[str]:
    """Those that a run reports on these tasks, with routers at these layers. Without either it
    needs no look at rows or model."""
    auxiliary = spec.loss.enabled() if spec.adapter.is_routed else ()
    names = {"task": list(tasks), "layer": list(layers), "auxiliary": list(auxiliary)}
    paths = (path for path, metric in METRICS.items() if metric.of(spec))
    return [one for path in paths for one in _expanded(path, names)]


def better_when(path: str) -> Mode | None:
    """Which way a metric is better; None where either may be wanted, or it is none of a run's."""
    found = (metric for pattern, metric in METRICS.items() if _pattern(pattern).fullmatch(path))
    metric = next(found, None)
    return metric.better if metric else None


def of_validation(name: str) -> str:
    """The path of what a short name means on validation rows: loss and score of all, or else a
    task's value."""
    whole = f"validation/{name}"
    return whole if whole in METRICS else value_of_task(name)


def value_of_task(task: str) -> str:
    """The path of a task's value."""
    return TASK_VALUE.replace("{task}", task)


def rank(value: float, mode: str) -> float:
    """A number that is smaller for what is better: to sort and to compare by."""
    return value if mode == "min" else -value


def is_better(mine: float, theirs: float, mode: str) -> bool:
    """Whether a value beats another."""
    return rank(mine, mode) < rank(theirs, mode)


def value_at(metrics: Mapping[str, Any], path: str) -> float | None:
    """The number at a path such as validation/loss in nested or flat metrics; None if it is not
    there. A task's own name may hold slashes."""
    for key, value in metrics.items():
        if key == path:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if number else None
        if isinstance(value, Mapping) and path.startswith(f"{key}/"):
            found = value_at(value, path[len(key) + 1 :])
            if found is not None:
                return found
    return None


def expert_load(metrics: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Share of the validation tokens that each expert got, by layer; empty without a router."""
    routing = metrics.get("validation", {}).get("routing", {})
    return {layer: tuple(entry["load"]) for layer, entry in routing.items()}


def _expanded(path: str, names: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """The path with each name in place of its braces; itself where it has none."""
    found = re.search(r"{(\w+)}", path)
    if found is None:
        yield path
        return
    yield from (path.replace(found[0], name) for name in names[found[1]])


def _pattern(path: str) -> re.Pattern[str]:
    """What fits a path with braces. A task's name may be anything."""
    auxiliary = "|".join(map(re.escape, AUXILIARY))
    fits = {"{auxiliary}": f"(?:{auxiliary})", "{task}": ".+", "{layer}": ".+"}
    parts = re.split(r"({\w+})", path)
    return re.compile("".join(fits.get(part, re.escape(part)) for part in parts), re.DOTALL)
