"""What is told of shadows."""

import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.rollout.shadow_stats import Comparisons
from orchestrator.rollout.window import Windows
from tests.orchestrator.rollout.traffic import NOW, answered, computed, failed, observed, rollout

STATE = rollout(shadow="b")


def seen(count: int) -> Comparisons:
    """A quarter equal, half equal in every second token, a quarter failed."""
    windows = Windows(GuardSpec())
    comparisons = Comparisons(windows)
    shadow = {"role": "shadow", "completion_tokens": 20, "timing": computed(2)}
    lots = (
        (count, answered("a")),
        (count // 4, answered("b", **shadow, agreement=1.0)),
        (count // 2, answered("b", **shadow, agreement=0.5)),
        (count // 4, failed("b", role="shadow")),
    )
    observed(windows, *lots)
    observed(comparisons.observe, *lots)
    return comparisons


def test_figures_beside_the_champions() -> None:
    figures = seen(40).figures(STATE, NOW)
    assert figures is not None
    assert (figures["requests"], figures["failed"]) == (40, 10)
    assert figures["equal"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["agreement"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["tokens"] == {"shadow": 20, "champion": 10}
    assert figures["p95_seconds"] == {"shadow": 0.2, "champion": 0.1}


@pytest.mark.parametrize("error", ["invalid_schema", "timeout", "client_closed_request"])
def test_a_requests_own_trouble_is_none_of_the_shadow(error: str) -> None:
    comparisons = seen(40)
    before = comparisons.figures(STATE, NOW)
    refused = failed("b", error, role="shadow", timing=None)
    left = answered("b", role="shadow")  # the returned answer was not whole: not compared
    observed(comparisons.observe, (100, refused), (100, left))
    assert comparisons.figures(STATE, NOW) == before


def test_nothing_is_told_of_what_is_no_shadow() -> None:
    assert seen(40).figures(rollout(), NOW) is None
    assert seen(40).figures(rollout(shadow="c"), NOW) is None
    assert Comparisons(Windows(GuardSpec())).figures(STATE, NOW) is None


@pytest.mark.parametrize(
    ("count", "told", "tells"),
    [(96, 0, False), (100, 0, True), (996, 100, False), (1000, 100, True), (1000, 1000, False)],
)
def test_the_log_is_told_more_and_more_rarely(count: int, told: int, tells: bool) -> None:
    decision = seen(count)(rollout(shadow="b", compared=told), NOW)
    assert (decision is not None) is tells
    if decision:
        assert (decision.action, decision.version) == ("compare", "b")
        assert decision.evidence["requests"] == count
