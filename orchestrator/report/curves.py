"""How a study's trials learned, as plotly draws it: the best one to be seen first."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.colors import qualitative

from orchestrator.report.figures import styled, whole_numbers
from orchestrator.tuning.study import Study, TrialRow, best_row, trial_name
from workers.config.metrics import TRAINING_LOSS, VALIDATION_LOSS, value_at
from workers.run.record import Metrics

_DASHES = {"finished": "solid", "stopped": "dash", "failed": "dot", "running": "dashdot"}
_FAINT = 0.35


def learning_curves(study: Study, rows: Sequence[TrialRow]) -> go.Figure | None:
    """The study's metric over optimizer steps, by trial; `rows` are its leaderboard."""
    return _curves(study, rows, study.metric)


def training_curves(study: Study, rows: Sequence[TrialRow]) -> go.Figure | None:
    """The loss on what is learned from, a line for each trial, and the best one's on the validation
    rows: where the two part, a trial learns its rows by heart."""
    figure, best = _curves(study, rows, TRAINING_LOSS), best_row(rows)
    if figure is None or best is None:
        return figure
    line = {"width": 3, "color": "#1f2933", "dash": "dot"}
    look = {"name": f"{trial_name(best.number)} validation", "line": line}
    return _draw(figure, study.progress(best.number), VALIDATION_LOSS, look)


def _curves(study: Study, rows: Sequence[TrialRow], metric: str) -> go.Figure | None:
    figure, best = go.Figure(), best_row(rows)
    for row in sorted(rows, key=lambda row: row.number):
        first = best is not None and row.number == best.number
        color = qualitative.D3[row.number % len(qualitative.D3)]
        look = {
            "name": f"{trial_name(row.number)} {'best' if first else row.state}",
            "line": {"width": 4 if first else 1.5, "color": color, "dash": _DASHES.get(row.state)},
            "marker": {"size": 8 if first else 5},
            "opacity": 1 if first or best is None else _FAINT,
        }
        _draw(figure, study.progress(row.number), metric, look)
    if not figure.data:
        return None
    figure.update_layout(xaxis_title="optimizer step", yaxis_title=metric)
    return whole_numbers(styled(figure), [step for trace in figure.data for step in trace.x])


def _draw(
    figure: go.Figure, reports: Sequence[Metrics], metric: str, look: Mapping[str, object]
) -> go.Figure:
    """A line over the reports that have the metric."""
    values = [(report["step"], value_at(report, metric)) for report in reports]
    points = [(step, value) for step, value in values if value is not None]
    if points:
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            mode="lines+markers",
            hovertemplate=f"{metric} %{{y:.4g}} at step %{{x}}",
            **look,
        )
    return figure
