"""The figures of a study's report, as plotly draws them."""

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from plotly.colors import qualitative

from orchestrator.study import Study, TrialRow, trial_name, value_at
from search_spaces.ranges import Interval, Range
from search_spaces.space import SearchSpace
from workers.spec import TrainSpec, override

ENOUGH_FOR_IMPORTANCE = 4
_FEW = 12
_SHORT = {"adapter.": "", "loss.": "", "optimizer.": "", "data.": ""}
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"}


def study_figures(study: Study) -> dict[str, go.Figure]:
    """Optuna's own plots, by name: those for which the study has enough finished trials."""
    whole = _with_effective_values(study)
    finished = whole.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    varied = sorted({path for trial in finished for path in trial.params})
    if not finished:
        return {}
    plots = optuna.visualization
    figures = {"history": plots.plot_optimization_history(whole, target_name=study.metric)}
    if not varied or len(finished) == 1:
        return {name: _styled(figure) for name, figure in figures.items()}
    figures["parallel"] = plots.plot_parallel_coordinate(whole, target_name=study.metric)
    figures["parallel"].update_traces(line_width=3, selector={"mode": "lines"})
    figures["parallel"].update_xaxes(tickfont={"size": 12})
    figures["slice"] = _slice(plots.plot_slice(whole, target_name=study.metric))
    values = {trial.value for trial in finished}
    if len(finished) >= ENOUGH_FOR_IMPORTANCE and len(values) > 1 and len(varied) > 1:
        with warnings.catch_warnings():  # an evaluator that Optuna calls experimental
            warnings.simplefilter("ignore")
            figures["importance"] = plots.plot_param_importances(whole, target_name=study.metric)
    return {name: _styled(figure) for name, figure in figures.items()}


def learning_curves(study: Study, rows: Sequence[TrialRow]) -> go.Figure | None:
    """The study's metric over optimizer steps, a line for each trial, the best one thick."""
    figure, best = go.Figure(), study.best()
    for row in sorted(rows, key=lambda row: row.number):
        points = [(r["step"], value_at(r, study.metric)) for r in study.progress(row.number)]
        if not points:
            continue
        first = best is not None and row.number == best.number
        color = qualitative.D3[row.number % len(qualitative.D3)]
        figure.add_scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            name=f"{trial_name(row.number)} {'best' if first else row.state}",
            mode="lines+markers",
            line={"width": 4 if first else 1.5, "color": color, "dash": _DASHES[row.state]},
            marker={"size": 8 if first else 5},
            hovertemplate=f"{study.metric} %{{y:.4g}} at step %{{x}}",
        )
    if not figure.data:
        return None
    figure.update_layout(xaxis_title="optimizer step", yaxis_title=study.metric)
    return _styled(figure)


def expert_load(load: dict[str, list[float]]) -> go.Figure | None:
    """Share of the tokens that each expert of each layer got, in multiples of an even share."""
    if not load:
        return None
    layers = list(load)
    experts = max(len(shares) for shares in load.values())
    relative = [[share * len(load[layer]) for share in load[layer]] for layer in layers]
    figure = go.Figure(
        go.Heatmap(
            z=relative,
            x=[f"expert {e}" for e in range(experts)],
            y=layers,
            customdata=[load[layer] for layer in layers],
            zmin=0,
            zmid=1,
            zmax=max(2.0, *(value for row in relative for value in row)),
            colorscale=[[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b2182b"]],
            texttemplate="%{z:.2f}" if len(layers) * experts <= 400 else "",
            hovertemplate="%{y}, %{x}: %{customdata:.1%} of the tokens<extra></extra>",
            colorbar={"thickness": 14, "tickvals": [0, 1, 2]},
            xgap=2,
            ygap=2,
        )
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure = _styled(figure)
    return figure.update_layout(height=max(240, 110 + 28 * len(layers)))


def _slice(figure: go.Figure) -> go.Figure:
    """Axes side by side that do not run into each other."""
    figure.update_xaxes(nticks=4, tickangle=0, tickfont={"size": 11}, title_font={"size": 12})
    figure.for_each_xaxis(
        lambda axis: axis.update(dtick=1, tickformat="~g") if axis.type == "log" else None
    )
    return figure.update_traces(marker={"size": 9})


_DASHES = {"finished": "solid", "stopped": "dash", "failed": "dot", "running": "dashdot"}


def short(path: str) -> str:
    """A field's name without its group, which figures have no room for."""
    for group, name in _SHORT.items():
        if path.startswith(group):
            return name + path.removeprefix(group)
    return path


def _styled(figure: go.Figure) -> go.Figure:
    return figure.update_layout(
        title=None,
        template="plotly_white",
        font=_FONT,
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        height=420,
        width=None,
        autosize=True,
        colorway=qualitative.D3,
    )


def _with_effective_values(study: Study) -> optuna.Study:
    """The study with every varied field in every trial, in memory.

    A field that was not asked (no router, no contrastive weight) ran with the job's value. Optuna's
    plots leave trials without it out; here they see what the trial ran with.
    """
    whole = optuna.create_study(direction=study.optuna.direction)
    train = TrainSpec.model_validate(study.job["train"])
    space = SearchSpace.resolve(study.job["search"]["space"], train)
    paths = study.optuna.user_attrs["varied"]
    ran = {
        trial.number: _values(override(train, trial.user_attrs["values"], "trial"), paths)
        for trial in study.optuna.get_trials(deepcopy=False)
        if trial.value is not None
    }
    ranges = {parameter.path: parameter.range for parameter in space.parameters}
    kinds = {
        path: _distribution(ranges.get(path), [values[path] for values in ran.values()])
        for path in (paths if ran else [])
    }
    for trial in study.optuna.get_trials(deepcopy=False):
        done = trial.number in ran and trial.state.name == "COMPLETE"
        values = ran[trial.number] if done else {}
        whole.add_trial(
            optuna.create_trial(
                state=trial.state if done else optuna.trial.TrialState.FAIL,
                value=trial.value if done else None,
                params={short(path): value for path, value in values.items()},
                distributions={short(path): kinds[path] for path in values},
            )
        )
    return whole


def _values(spec: TrainSpec, paths: Sequence[str]) -> dict[str, Any]:
    values = {}
    for path in paths:
        place: Any = spec.model_dump(mode="json")
        for part in path.split("."):
            place = place[part]
        values[path] = str(place) if isinstance(place, list) else place
    return values


def _distribution(asked: Range | None, ran: Sequence[Any]) -> BaseDistribution:
    """What a figure's axis spans: the range, and values outside that trials ran with."""
    if not isinstance(asked, Interval) or (asked.integer and len(set(ran)) <= _FEW):
        return CategoricalDistribution(sorted(set(ran), key=lambda v: (str(type(v)), v)))
    low, high = min(asked.low, *ran), max(asked.high, *ran)
    log = asked.log and low > 0
    if asked.integer:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)
