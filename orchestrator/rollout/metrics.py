"""Shadows beside their champions as series of Ray's metrics, and so of Prometheus
(`ray_moetune_shadow_…`).

Labels are names and versions: a name has one shadow at a time, and Ray forgets a gauge that is not
set any more.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.registry.state import Rollout
from orchestrator.rollout.shadow_stats import Comparisons
from orchestrator.telemetry.request_record import steady
from orchestrator.telemetry.series import Series

OF_SHADOW = ("name", "version")
OF_SIDE = (*OF_SHADOW, "side")
COUNTS = (
    Series("moetune_shadow_requests", "Answers of a shadow, failed ones too", labels=OF_SHADOW),
    Series("moetune_shadow_failed", "Of these, answers that failed", labels=OF_SHADOW),
)
LIKENESS = (
    Series("moetune_shadow_equal", "Share of answers equal to the returned", labels=OF_SHADOW),
    Series("moetune_shadow_agreement", "Share of tokens as in the returned", labels=OF_SHADOW),
)
SIDES = (
    Series("moetune_shadow_tokens", "Mean length, of shadow and champion", labels=OF_SIDE),
    Series(
        "moetune_shadow_p95_seconds",
        "Computed on an answer, of shadow and champion",
        labels=OF_SIDE,
    ),
)
OF_SHADOWS = (*COUNTS, *LIKENESS, *SIDES)


class ShadowMetrics:
    """Shows a gateway's comparisons. To be made inside Ray."""

    def __init__(self, comparisons: Comparisons) -> None:
        self._comparisons = comparisons
        self._gauges = {one.name: one.make() for one in OF_SHADOWS}

    def show(self, states: Iterable[Rollout]) -> None:
        """Set all gauges: to be called again within Ray's reporting interval. The states' times
        are by `steady`."""
        for state in states:
            figures = self._comparisons.figures(state, steady())
            if state.shadow is None or figures is None:
                continue
            labels = {"name": state.name, "version": state.shadow}
            for series, value in of_shadow(figures).items():
                self._gauges[series].set(value, labels)
            for (series, side), value in of_sides(figures).items():
                self._gauges[series].set(value, {**labels, "side": side})


def of_shadow(figures: Mapping[str, Any]) -> dict[str, float]:
    """What `Comparisons.figures` tells of a shadow alone; no likeness where nothing could be
    compared."""
    compared = figures["requests"] > figures["failed"]
    told = (*COUNTS, *LIKENESS) if compared else COUNTS
    return {one.name: float(figures[_key(one)]) for one in told}


def of_sides(figures: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """What it tells of shadow and champion, by series and side; nothing of a side that has not
    answered lately."""
    return {
        (one.name, side): float(value)
        for one in SIDES
        for side, value in figures[_key(one)].items()
        if value
    }


def _key(series: Series) -> str:
    return series.name.removeprefix("moetune_shadow_")
