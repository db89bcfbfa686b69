"""Metrics of runs and studies for Ray's dashboard and Prometheus, as series `ray_moetune_…`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.telemetry.refresh import Refresh
from orchestrator.tuning.events import TrialEvent
from orchestrator.tuning.study import STATES
from workers.config.losses import AUXILIARY
from workers.config.metrics import (
    LEARNING_RATE,
    TOKENS_PER_SECOND,
    TRAINING_LOSS,
    VALIDATION_LOSS,
    VALIDATION_SCORE,
    expert_load,
    value_at,
)

if TYPE_CHECKING:
    from workers.run.record import RunPlan


@dataclass(frozen=True)
class TrialGauge:
    """A gauge, and the place of its value in a report."""

    name: str
    path: str
    help: str


SERIES = (
    TrialGauge("moetune_step", "step", "Optimizer steps done"),
    TrialGauge("moetune_loss", TRAINING_LOSS, "Training loss, the adapter's own terms included"),
    TrialGauge("moetune_validation_loss", VALIDATION_LOSS, "Cross-entropy on validation rows"),
    TrialGauge("moetune_validation_score", VALIDATION_SCORE, "Mean of the tasks' metrics"),
    TrialGauge("moetune_learning_rate", LEARNING_RATE, "Learning rate of the step"),
    TrialGauge("moetune_tokens_per_second", TOKENS_PER_SECOND, "Tokens trained on"),
    TrialGauge("moetune_step_seconds", "train/step_seconds", "Seconds that a step takes"),
    TrialGauge("moetune_epoch", "epoch", "Passes over the training rows"),
    TrialGauge("moetune_steps", "steps", "Optimizer steps in all"),
    TrialGauge("moetune_eta_seconds", "eta_seconds", "Seconds until the run's end"),
    TrialGauge("moetune_workers", "workers", "Workers that train together"),
)


def series() -> list[TrialGauge]:
    """All of a run: SERIES, and one for each auxiliary loss."""
    losses = (
        TrialGauge(f"moetune_{name}", f"train/{name}", loss.says)
        for name, loss in AUXILIARY.items()
    )
    return [*SERIES, *losses]


class _GaugeValues:
    """What gauges show for as long as `owner` is referenced."""

    def __init__(self, owner: object) -> None:
        self._values: dict[tuple[Any, tuple[tuple[str, str], ...]], float] = {}
        Refresh(self._show, owner)

    def set(self, gauge: Any, value: float, **labels: str) -> None:
        """Show the value from now on."""
        self._values[gauge, tuple(labels.items())] = value
        gauge.set(value, labels)

    def _show(self) -> None:
        import ray

        if ray.is_initialized():  # a driver leaves its cluster
            for (gauge, labels), value in list(self._values.items()):
                gauge.set(value, dict(labels))


class TrainingMetrics:
    """An observer of one run: sets its gauges from every report and every step's figures. To be
    made inside Ray."""

    def __init__(self, study: str, trial: int | None) -> None:
        from ray.util.metrics import Gauge

        self._values = _GaugeValues(self)
        labels = {"study": study, "trial": "" if trial is None else str(trial)}
        self._gauges = {
            one: Gauge(one.name, one.help, tag_keys=tuple(labels)).set_default_tags(labels)
            for one in series()
        }
        self._load = Gauge(
            "moetune_expert_load",
            "Share of the validation tokens' choices that an expert got",
            tag_keys=(*labels, "layer", "expert"),
        ).set_default_tags(labels)

    @classmethod
    def of(cls, plan: "RunPlan") -> "TrainingMetrics":
        """The observer of a run; workers call this in the process of the first of them."""
        return cls(plan.study, plan.trial)

    def __call__(self, report: Mapping[str, Any]) -> None:
        """Set what the report holds; what it lacks keeps its last value."""
        for series, gauge in self._gauges.items():
            value = value_at(report, series.path)
            if value is not None:
                self._values.set(gauge, value)
        for layer, load in expert_load(report).items():
            for expert, share in enumerate(load):
                self._values.set(self._load, share, layer=layer, expert=str(expert))


class StudyMetrics:
    """A listener to a study: `moetune_trials` by state. To be made in the connected driver."""

    def __init__(self, study: str) -> None:
        from ray.util.metrics import Gauge

        self._values = _GaugeValues(self)
        self._trials = Gauge(
            "moetune_trials", "Trials of a study by state", tag_keys=("study", "state")
        ).set_default_tags({"study": study})

    def __call__(self, event: TrialEvent) -> None:
        """Show the study's counts. All states are set: none keeps a stale one."""
        for state in STATES.values():
            self._values.set(self._trials, event.states.get(state, 0), state=state)
