"""Watches Tune's trials, and tells what happens to them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune import Callback
from ray.tune.experiment import Trial

from orchestrator.tuning.events import Best, Kind, TrialEvent
from orchestrator.tuning.searcher import StudySearch
from orchestrator.tuning.study import STATES, best_of
from workers.config.metrics import BEST_STEP, STOPPED, value_at

_ENDS: dict[str, Kind] = {"COMPLETE": "finished", "PRUNED": "stopped"}


class StudyWatcher(Callback):  # type: ignore[misc]
    """Turns Tune's callbacks into events. Tune names every argument."""

    def __init__(
        self, search: StudySearch, listeners: Sequence[Callable[[TrialEvent], None]]
    ) -> None:
        self._search = search
        self._listeners = listeners
        self._started: set[int] = set()
        """Trials that run, but for those that are to be tried again."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that we never ask for; displays do not pickle.
        return {}

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        """A trial begins or goes on."""
        self._started.add(self._search.trial(trial.trial_id).number)
        self._event(trial, "started")

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        """A trial evaluated."""
        self._event(trial, "reported", result)

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:
        """A trial ended: by itself, stopped by ASHA, or with an adapter that is not usable."""
        record = self._search.trial(trial.trial_id)
        kind = _ENDS.get(record.state.name, "failed")
        self._event(trial, kind, message=record.user_attrs.get("reason") or _early(record))

    def on_trial_recover(self, *, trial: Trial, **_: Any) -> None:
        """A trial failed and is tried again; what Tune ends because the study ends is not."""
        if self._search.refusal is None:
            self._started.discard(self._search.trial(trial.trial_id).number)
            self._event(trial, "retried", message=self._failure(trial))

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:
        """A trial failed for good."""
        self._event(trial, "failed", message=self._failure(trial))

    def _failure(self, trial: Trial) -> str:
        failures = self._search.trial(trial.trial_id).user_attrs.get("failures", [""])
        return str(failures[-1])

    def _event(
        self, trial: Trial, kind: Kind, result: Mapping[str, Any] | None = None, message: str = ""
    ) -> None:
        record = self._search.trial(trial.trial_id)
        report = result or trial.last_result or {}
        everyone = self._search.trials()
        best = best_of(everyone, self._search.mode)
        event = TrialEvent(
            number=record.number,
            kind=kind,
            params=record.user_attrs["values"],
            step=int(report.get("step", 0)),
            steps=int(report.get("steps", 0)),
            value=record.value if kind == "finished" else value_at(report, self._search.metric),
            message=message,
            states=Counter(map(self._state, everyone)),
            best=best and Best(best.number, float(best.value or 0.0)),
        )
        for tell in self._listeners:
            tell(event)

    def _state(self, trial: FrozenTrial) -> str:
        """A trial that was cut off, or is to be tried again, waits: Optuna calls it running."""
        waits = trial.state.name == "RUNNING" and trial.number not in self._started
        return "waiting" if waits else STATES[trial.state.name]


def _early(trial: FrozenTrial) -> str:
    """Of a finished trial, that it ended before its last step."""
    if not trial.user_attrs.get(STOPPED):
        return ""
    return f"stopped early, its best at step {trial.user_attrs[BEST_STEP]}"
