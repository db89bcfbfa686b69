"""What a study has gained: its best trial beside the bare base, in figures and in answers.

Both are read from what the trials have left; what is missing is not shown.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.tuning.study import Study, TrialRow, trial_name
from workers.config.metrics import (
    LOSS,
    TITLES,
    VALUE,
    Mode,
    better_when,
    of_validation,
    rank,
)
from workers.config.train import TrainSpec
from workers.run.record import Metrics
from workers.run.samples import Sample, read_samples, samples_beside
from workers.train.used import base_file


@dataclass(frozen=True)
class TaskGain:
    """One measure of one task, by both."""

    task: str
    measure: str
    rows: int | None
    base: float | None
    best: float | None
    mode: Mode = "max"
    """Which way the measure is better."""

    @property
    def change(self) -> float | None:
        """Best less base."""
        return None if self.base is None or self.best is None else self.best - self.base

    @property
    def verdict(self) -> str:
        """better, worse or same."""
        if not self.change:
            return "same"
        return "better" if rank(self.change, self.mode) < 0 else "worse"


@dataclass(frozen=True)
class Pair:
    """A validation row with both answers."""

    best: Sample
    base: Sample | None
    """None where the base was not asked."""


@dataclass(frozen=True)
class Gain:
    """The best trial and the base, as far as they were measured on the same rows."""

    lines: tuple[TaskGain, ...]
    samples: tuple[Pair, ...]

    @classmethod
    def of(cls, study: Study, best: TrialRow | None) -> "Gain":
        """From the study's folder; empty where there is no best trial."""
        if best is None:
            return cls((), ())
        folder = study.folder / "trials" / trial_name(best.number)
        figures = _figures(study, folder)
        base = _metrics(figures)
        lines = tuple(_lines(base.get("validation", {}), best.metrics.get("validation", {})))
        bare = read_samples(samples_beside(figures)) if figures else []
        known = {(one.task, one.question, one.expected): one for one in bare}
        taught = read_samples(folder / "samples.json")
        pairs = (Pair(one, known.get((one.task, one.question, one.expected))) for one in taught)
        return cls(lines if base else (), tuple(pairs))


def _figures(study: Study, trial: Path) -> Path | None:
    """Where the base's figures on a trial's rows are."""
    try:
        spec = TrainSpec.model_validate_json((trial / "train.json").read_text())
    except (OSError, ValueError):  # not begun, or of a version that knew other fields
        return None
    return base_file(study.folder, spec)


def _metrics(figures: Path | None) -> Metrics:
    try:
        found = json.loads(figures.read_text())["metrics"] if figures else {}
    except (OSError, ValueError, KeyError, TypeError):  # never measured, or being written
        return {}
    return found if isinstance(found, dict) else {}


def _lines(base: Mapping[str, Any], best: Mapping[str, Any]) -> Iterator[TaskGain]:
    tasks = {"base": base.get("tasks", {}), "best": best.get("tasks", {})}
    for task in sorted({*tasks["base"], *tasks["best"]}):
        one, other = (tasks[side].get(task, {}) for side in ("base", "best"))
        told = {**one, **other}
        measures: tuple[tuple[str, str, Mode], ...] = (
            (VALUE, str(told.get("metric", "")), "max"),
            (LOSS, TITLES[LOSS], "min"),
        )
        for field, measure, mode in measures:
            if field in told:
                values = one.get(field), other.get(field)
                yield TaskGain(task, measure, told.get("rows"), *values, mode)
    for field, measure in TITLES.items():
        if field in base or field in best:
            mode = better_when(of_validation(field)) or "max"
            yield TaskGain("all", measure, None, base.get(field), best.get(field), mode)
