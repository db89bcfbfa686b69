"""When a study will have ended."""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.tuning.study import SAME_AS

if TYPE_CHECKING:
    import optuna

    Trials = Sequence[optuna.trial.FrozenTrial]


def eta(trials: "Trials", remaining: Mapping[int, float | None], in_all: int) -> float | None:
    """Seconds until the last of `in_all` trials ends; None before anything is known.

    `trials` are those there are, `remaining` the seconds that each running one needs, where it
    knows. A trial to come starts where one ends, and as many run side by side as now.
    """
    a_trial = _usual(trials, remaining)
    if a_trial is None or not remaining:
        return None
    ends = [a_trial if seconds is None else seconds for seconds in remaining.values()]
    heapq.heapify(ends)
    for _ in range(in_all - len(trials)):
        heapq.heapreplace(ends, ends[0] + a_trial)
    return max(ends)


def _usual(trials: "Trials", remaining: Mapping[int, float | None]) -> float | None:
    """What a trial takes: those that ended say it (stopped ones too, since more will be), or else
    those that run."""
    trained = (t for t in trials if SAME_AS not in t.user_attrs)
    ended = [t.duration for t in trained if t.state.name in ("COMPLETE", "PRUNED") and t.duration]
    if ended:
        return float(statistics.median(duration.total_seconds() for duration in ended))
    starts = {t.number: t.datetime_start for t in trials}
    taking = [
        (datetime.now() - start).total_seconds() + seconds
        for number, seconds in remaining.items()
        if seconds is not None and (start := starts[number])
    ]
    return float(statistics.median(taking)) if taking else None
