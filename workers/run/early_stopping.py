"""When a run ends before its last step, and which of its evaluations counts. No torch.

With `optimizer.early_stopping` every report says how it stands, below `early_stopping`: the `best`
value so far, its step, evaluations `waited` since the last gain, and whether the run has `stopped`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from workers.config.base import InputError
from workers.config.metrics import (
    BEST,
    BEST_STEP,
    STOPPED,
    VALIDATION_LOSS,
    Mode,
    is_better,
    rank,
    value_at,
)
from workers.config.train import EarlyStoppingSpec


@dataclass(frozen=True)
class WatchedMetric:
    """What a run is compared with others on."""

    path: str = VALIDATION_LOSS
    mode: Mode = "min"


@dataclass(frozen=True)
class Patience:
    """How long a run has waited for a gain. Each evaluation makes a new one."""

    spec: EarlyStoppingSpec
    watched: WatchedMetric
    best: float | None = None
    best_step: int = 0
    to_beat: float | None = None
    """The value of the last gain: small steps add up to one."""
    waited: int = 0
    """Evaluations since then."""

    @classmethod
    def of(cls, spec: EarlyStoppingSpec | None, watched: WatchedMetric) -> "Patience | None":
        """For a run that begins; None where nothing ends it early."""
        return None if spec is None else cls(spec, watched)

    @property
    def is_over(self) -> bool:
        """Whether the run ends here."""
        return self.waited >= self.spec.patience

    def after(self, report: Mapping[str, Any]) -> "Patience":
        """With one evaluation more. InputError where it has not the metric."""
        path, mode = self.watched.path, self.watched.mode
        value, step = value_at(report, path), int(report["step"])
        if value is None:
            raise InputError(f"optimizer.early_stopping watches {path}, which is not reported")
        waiting = replace(self, waited=self.waited + 1)
        if self.best is None or is_better(value, self.best, mode):
            waiting = replace(waiting, best=value, best_step=step)
        gain = math.inf if self.to_beat is None else rank(self.to_beat, mode) - rank(value, mode)
        if gain > self.spec.min_delta:
            waiting = replace(waiting, to_beat=value, waited=0)
        return waiting

    def figures(self, *, stopped: bool) -> dict[str, float]:
        """What a report says of it."""
        assert self.best is not None, "there was an evaluation"
        return {
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
            "stopped": int(stopped),
        }

    def state(self) -> dict[str, Any]:
        """What `resumed` takes, as plain values."""
        return {key: value for key, value in asdict(self).items() if key not in ("spec", "watched")}

    def resumed(self, state: Mapping[str, Any]) -> "Patience":
        """As it stood at a checkpoint."""
        return replace(self, **state)

    def __str__(self) -> str:
        """Why the run ends."""
        many = "1 evaluation" if self.waited == 1 else f"{self.waited} evaluations"
        best = f"the best was at step {self.best_step}"
        return f"{self.watched.path} has got no better in {many}; {best}"


def has_ended(report: Mapping[str, Any]) -> bool:
    """Whether a run's report, nested or flat, is its last."""
    return bool(report["step"] >= report["steps"] or value_at(report, STOPPED))


def final_value(report: Mapping[str, Any], path: str) -> float:
    """What a run came to by its last report: with early stopping its best."""
    best = value_at(report, BEST)
    value = value_at(report, path) if best is None else best
    assert value is not None, "trials report what they are compared on"
    return value


def early_end(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial is noted with where it watched for an early end; nothing of others."""
    step = value_at(report, BEST_STEP)
    if step is None:
        return {}
    return {BEST_STEP: int(step), STOPPED: bool(value_at(report, STOPPED))}
