"""Which tasks each expert serves: an adapter's routing on rows whose tasks are known.

Shapes: E experts, N tasks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.placement import Demand, wait_for_room
from orchestrator.evaluation.compare import Measurement
from orchestrator.router_health.layout import Array
from workers.config.base import InputError
from workers.config.train import TrainSpec

PREFERRED = 1.1
"""A task is served by the experts that get so many times the tokens of it that they get of all."""
SHOWN = 3


@dataclass(frozen=True)
class LayerTasks:
    """One layer. Every task counts the same, however many rows it has."""

    layer: str
    tasks: tuple[str, ...]
    share_NE: Array
    """Share of each task's slots that each expert gets."""

    @property
    def load(self) -> list[float]:
        """Share of all slots that each expert gets."""
        return [float(share) for share in self.share_NE.mean(0)]

    def lift(self, expert: int) -> dict[str, float]:
        """How many times its share of all slots an expert gets of each task's; the highest first.
        Empty for an expert that gets nothing."""
        shares = self.share_NE[:, expert]
        if not shares.any():
            return {}
        lifts = zip(self.tasks, (shares / shares.mean()).tolist(), strict=True)
        return dict(sorted(lifts, key=lambda one: -one[1]))

    @property
    def specialisation(self) -> float:
        """Mutual information of task and expert over its most, the tasks' entropy: 0 where every
        task is routed alike, 1 where the experts tell the tasks apart."""
        mean_E = self.share_NE.mean(0)
        ratio_NE = np.divide(
            self.share_NE, mean_E, out=np.ones_like(self.share_NE), where=mean_E > 0
        )
        logs_NE = np.log(ratio_NE, out=np.zeros_like(ratio_NE), where=ratio_NE > 0)
        information = float((self.share_NE * logs_NE).sum(1).mean())
        return information / math.log(max(len(self.tasks), 2))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        experts = [
            {"expert": expert, "load": load, "lift": self.lift(expert)}
            for expert, load in enumerate(self.load)
        ]
        return {"layer": self.layer, "specialisation": self.specialisation, "experts": experts}

    def rows(self) -> list[list[Any]]:
        """One line for each expert: layer, specialisation, expert, load, tasks."""
        return [
            [self.layer, self.specialisation, expert, load, self._served(expert)]
            for expert, load in enumerate(self.load)
        ]

    def _served(self, expert: int) -> str:
        preferred = [(t, lift) for t, lift in self.lift(expert).items() if lift >= PREFERRED]
        return ", ".join(f"{task} {lift:.1f}x" for task, lift in preferred[:SHOWN]) or "all alike"


COLUMNS = ("layer", "specialisation", "expert", "load", "serves")


def by_layer(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> list[LayerTasks]:
    """From slots by task, layer and expert."""
    tasks = tuple(sorted(counts))
    layers = next(iter(counts.values()))
    found = []
    for layer in layers:
        count_NE = np.array([counts[task][layer] for task in tasks], dtype=np.float64)
        share_NE = count_NE / np.maximum(count_NE.sum(1, keepdims=True), 1)
        found.append(LayerTasks(layer, tasks, share_NE))
    return found


def expert_tasks(measurement: Measurement) -> list[LayerTasks]:
    """Of a version, computed on the connected cluster. Raises InputError."""
    return by_layer(_counted(measurement.spec, measurement.folder))


def _counted(spec: TrainSpec, folder: Path) -> Mapping[str, Mapping[str, Sequence[int]]]:
    import ray

    from workers.train.evaluation.expert_tasks import count_by_task

    wait_for_room(Demand("the evaluation", "task", 1, 1))

    try:
        counts: Mapping[str, Mapping[str, Sequence[int]]] = ray.get(
            ray.remote(num_cpus=1, max_retries=1)(count_by_task).remote(spec, folder)
        )
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    return counts
