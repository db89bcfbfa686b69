"""Before and after: the base model and its adapters on the same rows, by task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.errors import ClusterError
from cluster.placement import WAIT_SECONDS, Demand, wait_for_room
from workers.config.base import InputError, one_line, override, validated
from workers.config.data import DataSpec
from workers.config.metrics import LOSS, SCORE, TITLES, VALUE
from workers.config.train import TrainSpec
from workers.run.record import Metrics

if TYPE_CHECKING:
    from orchestrator.registry.models import Version
    from orchestrator.registry.registry import Registry

BASE = "base"
Asked = TypeVar("Asked")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Comparison:
    """What each candidate gave: `results[label]` is what validation reports."""

    results: Mapping[str, Metrics]

    def columns(self) -> list[str]:
        """Headings of `rows`."""
        return ["task", "metric", "rows", *self.results]

    def rows(self) -> list[list[Any]]:
        """One line a task with each candidate's value, then the score and the loss."""
        tables = {label: metrics["tasks"] for label, metrics in self.results.items()}
        first = next(iter(tables.values()))
        lines: list[list[Any]] = [
            [task, entry["metric"], entry["rows"], *(t[task][VALUE] for t in tables.values())]
            for task, entry in first.items()
        ]
        total = sum(entry["rows"] for entry in first.values())
        for name, title in ((SCORE, TITLES[SCORE]), (LOSS, TITLES[LOSS])):
            lines.append(["all", title, total, *(m[name] for m in self.results.values())])
        return lines

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Value by candidate and task, with `score` and `loss`."""
        return {
            label: {task: entry[VALUE] for task, entry in metrics["tasks"].items()}
            | {SCORE: metrics[SCORE], LOSS: metrics[LOSS]}
            for label, metrics in self.results.items()
        }


@dataclass(frozen=True)
class Measurement:
    """A version, and the rows to measure it on."""

    reference: str
    """As it was asked for: `NAME` or `NAME@VERSION`."""
    version: "Version"
    folder: Path
    """Its adapter."""
    spec: TrainSpec
    """How it was trained, on the rows to measure."""

    @classmethod
    def of(  # noqa: PLR0913
        cls,
        registry: "Registry",
        reference: str,
        source: str | None,
        rows: int,
        *,
        generate: bool = True,
        base: str | None = None,
    ) -> "Measurement":
        """On up to `rows` rows a task of `source`, or of the validation rows of its training,
        encoded as in its training; with `generate`, answers too. `base` is the folder where its
        base model is now, if that was moved. Needs no cluster.

        Raises InputError for a version, a base model or a row that cannot be used.
        """
        from orchestrator.registry.trained_base import trained_base
        from workers.data.rows import validation_rows

        version = registry.resolve(reference)
        manifest = registry.manifest(version)
        if manifest.asked_with is None:
            raise InputError(
                f"{reference}: was not trained by moetune; nothing says how to prompt it"
            )
        known = validated(TrainSpec, manifest.asked_with, reference)
        changes = {
            **_rows(source, known.data),
            "data.max_rows": 1,
            "evaluation.generate": generate,
            "evaluation.rows_per_task": rows,
            "parallel": {},
        }
        spec = override(known, changes, reference)
        model = trained_base(reference, manifest.base, spec.model, base)
        spec = spec.model_copy(update={"model": model})
        for _ in validation_rows(spec.data):  # all must be right
            pass
        return cls(reference, version, version.folder, spec)


def _rows(source: str | None, data: DataSpec) -> dict[str, str]:
    """Of `source`, or those of its training. What it was trained on may be gone: where it does not
    hold these rows, it is not asked for."""
    rows = source or data.validation
    return {"data.train": rows, "data.validation": rows} if isinstance(rows, str) else {}


def compare(
    spec: TrainSpec, folders: Mapping[str, Path | None], cpus: float = 1, gpus: float = 0
) -> Comparison:
    """Measure adapters (None: the bare base) on `spec.data.validation` on the connected cluster,
    at the same time where there is room; each takes `cpus` cores and `gpus` GPUs."""
    from workers.train.evaluation.expert_tasks import evaluate_folder

    return Comparison(on_cluster(evaluate_folder, spec, folders, evaluation(cpus, gpus)))


def evaluation(cpus: float, gpus: float = 0) -> Demand:
    """What one takes of a cluster."""
    return Demand("the evaluation", "task", 1, cpus, gpus)


def on_cluster(
    measure: Callable[[Asked, Path | None], Result],
    spec: Asked,
    folders: Mapping[str, Path | None],
    demand: Demand,
    wait_seconds: float = WAIT_SECONDS,
) -> dict[str, Result]:
    """What `measure` gives for each folder, each in a task of the connected cluster that takes
    what is demanded."""
    import ray

    wait_for_room(demand, wait_seconds)
    task = ray.remote(num_cpus=demand.cpus, num_gpus=demand.gpus, max_retries=1)(measure)
    running = {label: task.remote(spec, folder) for label, folder in folders.items()}
    try:
        return {label: ray.get(result) for label, result in running.items()}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise ClusterError(f"{demand.who} failed: {one_line(error.cause)}") from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"{demand.who} failed: {one_line(error)}") from None


def compare_version(measurement: Measurement, gpus: float = 0) -> Comparison:
    """The base and a version, measured on the connected cluster."""
    folders = {BASE: None, measurement.reference: measurement.folder}
    return compare(measurement.spec, folders, gpus=gpus)
