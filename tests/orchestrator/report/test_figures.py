"""Figures of a study. What they show of one: test_report."""

import pytest

from orchestrator.report.figures import expert_load


@pytest.mark.parametrize(
    "load", [[0.25] * 4, [0.97, 0.01, 0.01, 0.01], [1 / 8] * 8, [0.5, 0.3, 0.2]]
)
def test_an_even_share_is_white_whatever_the_largest_is(load: list[float]) -> None:
    figure = expert_load({"layer": load})
    assert figure is not None
    heat = figure.data[0]
    even = (1 - heat.zmin) / (heat.zmax - heat.zmin)
    colors = {round(at, 9): color for at, color in heat.colorscale}
    assert colors[round(even, 9)] == "#ffffff"
