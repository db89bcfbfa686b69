"""The figures of a study's report, as plotly draws them."""

import warnings
from collections.abc import Mapping, Sequence

import optuna
import plotly.graph_objects as go
from plotly.colors import qualitative, sample_colorscale

from orchestrator.report.effective import with_effective_values
from orchestrator.tuning.study import Study

ENOUGH_FOR_IMPORTANCE = 4
_FEW = 12
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"}


def study_figures(study: Study) -> dict[str, go.Figure]:
    """Optuna's own plots, by name: those for which the study has enough finished trials."""
    whole = with_effective_values(study)
    finished = whole.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    varied = sorted({path for trial in finished for path in trial.params})
    if not finished:
        return {}
    plots = optuna.visualization
    history = plots.plot_optimization_history(whole, target_name=study.metric)
    figures = {"history": whole_numbers(history, range(len(whole.trials)))}
    if not varied or len(finished) == 1:
        return {name: styled(figure) for name, figure in figures.items()}
    parallel = plots.plot_parallel_coordinate(whole, target_name=study.metric)
    figures["parallel"] = _parallel(parallel, dark_is_low=study.mode == "min")
    figures["slice"] = _slice(plots.plot_slice(whole, target_name=study.metric))
    values = {trial.value for trial in finished}
    if len(finished) >= ENOUGH_FOR_IMPORTANCE and len(values) > 1 and len(varied) > 1:
        with warnings.catch_warnings():  # an evaluator that Optuna calls experimental
            warnings.simplefilter("ignore")
            figures["importance"] = plots.plot_param_importances(whole, target_name=study.metric)
    return {name: styled(figure) for name, figure in figures.items()}


def expert_load(load: Mapping[str, Sequence[float]]) -> go.Figure | None:
    """Share of the tokens that each expert of each layer got, in multiples of an even share."""
    if not load:
        return None
    layers = list(load)
    experts = max(len(shares) for shares in load.values())
    relative = {layer: [share * len(shares) for share in shares] for layer, shares in load.items()}
    most = max(2.0, *(value for row in relative.values() for value in row))
    figure = go.Figure(
        go.Heatmap(
            z=[_filled(relative[layer], experts) for layer in layers],
            x=[f"expert {e}" for e in range(experts)],
            y=layers,
            customdata=[_filled(load[layer], experts) for layer in layers],
            hoverongaps=False,
            zmin=0,
            zmax=most,
            # White is an even share. Plotly's own zmid does nothing where both ends are given.
            colorscale=[[0, "#2166ac"], [1 / most, "#ffffff"], [1, "#b2182b"]],
            texttemplate="%{z:.2f}" if len(layers) * experts <= 400 else "",
            hovertemplate="%{y}, %{x}: %{customdata:.1%} of the tokens<extra></extra>",
            colorbar={"thickness": 14, "tickvals": [0, 1, 2]},
            xgap=2,
            ygap=2,
        )
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure = styled(figure)
    return figure.update_layout(height=max(240, 110 + 28 * len(layers)))


def _filled(shares: Sequence[float], experts: int) -> list[float | None]:
    """A row of the heat map; layers with fewer experts than others have gaps."""
    return [*shares, *[None] * (experts - len(shares))]


def _parallel(figure: go.Figure, dark_is_low: bool) -> go.Figure:
    """In colours that are all seen on white; Optuna fades the worst trials out entirely."""
    for line in figure.select_traces(selector={"mode": "lines"}):
        place = line.y[0] if dark_is_low else 1 - line.y[0]  # the first axis is the metric
        (color,) = sample_colorscale("Viridis", [min(max(place, 0.0), 1.0)])
        line.update(line={"color": color, "width": 2.5}, opacity=0.85)
    figure.update_traces(
        marker={"colorscale": "Viridis", "reversescale": not dark_is_low},
        selector={"mode": "markers"},
    )
    return figure.update_xaxes(tickfont={"size": 12})


def _slice(figure: go.Figure) -> go.Figure:
    """Axes side by side that do not run into each other."""
    figure.update_xaxes(nticks=4, tickangle=0, tickfont={"size": 11}, title_font={"size": 12})
    for trace in figure.data:
        axis = figure.layout["xaxis" + (trace.xaxis or "x")[1:]]
        if axis.type == "log":  # plotly labels decades: none or too many
            low, high = min(trace.x), max(trace.x)
            marks = sorted({low, (low * high) ** 0.5, high})
            axis.update(tickvals=marks, ticktext=[f"{mark:.1e}" for mark in marks])
        numbers = sorted(trace.marker.color)
        few = numbers[:: len(numbers) // 8 + 1]
        trace.update(marker={"size": 9, "colorbar": {"tickvals": few}})
    return figure


def whole_numbers(figure: go.Figure, values: Sequence[int]) -> go.Figure:
    """Label the horizontal axis at whole numbers only: those given, where they are few."""
    if len(set(values)) <= _FEW:
        return figure.update_xaxes(tickvals=sorted(set(values)))
    return figure.update_xaxes(tickformat="d")


def styled(figure: go.Figure) -> go.Figure:
    """The look of all of them."""
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
