"""A study's report: one HTML page with everything in it, readable without a network."""

from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator import templates
from orchestrator.config.cluster import ClusterSpec
from orchestrator.monitoring.format import duration, number
from orchestrator.registry.exportable import told
from orchestrator.registry.promoted import Promotions, promotions
from orchestrator.registry.registry import Registry
from orchestrator.report.gain import Gain
from orchestrator.tuning.study import Study, TrialRow, best_row, trial_name
from search_spaces.ranges import BESIDE
from workers.config.metrics import expert_load
from workers.run.events import read_events
from workers.run.files import write_text
from workers.run.record import Metrics

_TASK_TRIALS = 5
_NOTHING = "\N{EN DASH}"


def write(cluster: ClusterSpec, name: str) -> Path:
    """Write the report of a study into its folder, and return its path.

    Raises InputError for a study that is not there.
    """
    study = Study.open(cluster, name)
    path = study.folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(Registry(cluster.store_url(), cluster.storage)) as registry:
        promoted = promotions(registry, name)
    write_text(path, render(study, promoted))
    return path


def render(study: Study, promoted: Promotions) -> str:
    """The page. A study that still runs, or where trials failed, gives a page too."""
    from plotly.offline import get_plotlyjs

    rows = study.leaderboard()
    return templates.render(
        Path(__file__).with_name("report.html.j2"),
        {
            "number": _number,
            "duration": _duration,
            "trial": trial_name,
            "minute": _minute,
            "sources": _sources,
        },
        plotly_js=get_plotlyjs(),
        figures={name: _html(figure, name) for name, figure in _figures(study, rows).items()},
        gain=Gain.of(study, best_row(rows)),
        promoted=promoted,
        **_facts(study, rows),
    )


def _facts(study: Study, rows: list[TrialRow]) -> dict[str, Any]:
    """What the page says in words and tables."""
    from orchestrator.report.effective import short

    states, job, attributes = [row.state for row in rows], study.job, study.optuna.user_attrs
    space = job["search"]["space"]
    return {
        "study": study,
        "job": job,
        "rows": rows,
        "best": best_row(rows),
        "counts": {state: states.count(state) for state in dict.fromkeys(states)},
        "seconds": sum(row.seconds or 0 for row in rows),
        "smaller": {row.number: _smaller_passes(study, row.number) for row in rows},
        "columns": [(path, short(path)) for path in attributes["varied"]],
        "export": told(study.exportable(rows).items()),
        "tasks": _tasks(rows),
        "space": {field: _words(entry) for field, entry in (space or {}).items()},
        "began": attributes.get("began"),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": version("moetune"),
    }


def _smaller_passes(study: Study, number: int) -> list[str]:
    """What a trial's record says of memory that ran out."""
    events = read_events(study.folder / "trials" / trial_name(number))
    return [
        event.message if event.step is None else f"after step {event.step}, {event.message}"
        for event in events
        if event.kind == "memory"
    ]


def _sources(train: Any) -> str:
    """What a job learns from, with the weights of several sources."""
    if isinstance(train, str):
        return train
    weighted = ((one["source"], one["weight"]) for one in train)
    return ", ".join(
        source if weight == 1 else f"{source} (weight {weight:g})" for source, weight in weighted
    )


def _figures(study: Study, rows: list[TrialRow]) -> dict[str, Any]:
    from orchestrator.report import curves, figures

    best = best_row(rows)
    drawn = {
        **figures.study_figures(study),
        "curves": curves.learning_curves(study, rows),
        "training": curves.training_curves(study, rows),
        "load": figures.expert_load(expert_load(best.metrics)) if best else None,
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _html(figure: Any, name: str) -> str:
    config = {"displayModeBar": False, "responsive": True}
    text: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config=config, div_id=f"figure-{name}"
    )
    return text


def _tasks(rows: list[TrialRow]) -> dict[str, Any]:
    """The best trials' validation by task: {trials, tasks: {task: [report of each trial]}}."""
    shown = [row for row in rows if row.state == "finished"][:_TASK_TRIALS]
    reports: list[Metrics] = [row.metrics.get("validation", {}).get("tasks", {}) for row in shown]
    names = sorted({task for report in reports for task in report})
    return {
        "trials": [row.number for row in shown],
        "tasks": {task: [report.get(task, {}) for report in reports] for task in names},
    }


def _words(entry: Any) -> str:
    """A range of the search space in words."""
    if not isinstance(entry, dict):
        return f"{entry} (fixed)"
    when = "".join(f", where {path}: {test}" for path, test in entry.get("when", {}).items())
    kind, value = next((k, v) for k, v in entry.items() if k not in BESIDE)
    if kind == "choice":
        return f"one of {', '.join(map(str, value))}{when}"
    scale = {"log": " (log scale)", "int": " (whole numbers)", "float": ""}[kind]
    step = f" in steps of {entry['step']}" if "step" in entry else ""
    below = f", below {entry['below']}" if "below" in entry else ""
    return f"{value[0]} to {value[1]}{scale}{step}{below}{when}"


def _number(value: Any) -> str:
    """Four digits for a fraction, everything else as it is."""
    return _NOTHING if value is None else number(value)


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float | None) -> str:
    return _NOTHING if seconds is None else duration(seconds)
