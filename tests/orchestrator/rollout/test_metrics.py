"""What the series of shadows are made of. (That Prometheus reads them: test_serving.)"""

from typing import Any

from orchestrator.config.rollout import GuardSpec
from orchestrator.rollout.metrics import OF_SHADOWS, of_shadow, of_sides
from orchestrator.rollout.shadow_stats import Comparisons
from orchestrator.rollout.window import Windows
from orchestrator.telemetry.request_record import RequestRecord
from tests.orchestrator.rollout.traffic import NOW, answered, computed, failed, observed, rollout

SHADOW: dict[str, Any] = {"role": "shadow", "completion_tokens": 20, "timing": computed(2)}
STATE = rollout(shadow="b")


def seen(*lots: tuple[int, RequestRecord]) -> Comparisons:
    windows = Windows(GuardSpec())
    comparisons = Comparisons(windows)
    observed(windows, *lots)
    observed(comparisons.observe, *lots)
    return comparisons


def figures(*lots: tuple[int, RequestRecord]) -> dict[str, Any]:
    found = seen(*lots).figures(STATE, NOW)
    assert found is not None
    return found


def test_every_series_has_a_meaning_and_bounded_labels() -> None:
    assert len({one.name for one in OF_SHADOWS}) == len(OF_SHADOWS)
    for one in OF_SHADOWS:
        assert one.name.startswith("moetune_shadow_")
        assert one.help.isascii(), "Ray takes no other"
        assert set(one.labels) <= {"name", "version", "side"}


def test_a_shadow_beside_its_champion() -> None:
    told = figures(
        (4, answered("a")),
        (1, answered("b", **SHADOW, agreement=1.0)),
        (2, answered("b", **SHADOW, agreement=0.5)),
        (1, failed("b", role="shadow")),
    )
    assert of_shadow(told) == {
        "moetune_shadow_requests": 4,
        "moetune_shadow_failed": 1,
        "moetune_shadow_equal": 0.3333,
        "moetune_shadow_agreement": 0.6667,
    }
    assert of_sides(told) == {
        ("moetune_shadow_tokens", "shadow"): 20,
        ("moetune_shadow_tokens", "champion"): 10,
        ("moetune_shadow_p95_seconds", "shadow"): 0.2,
        ("moetune_shadow_p95_seconds", "champion"): 0.1,
    }


def test_no_likeness_and_no_times_of_what_only_failed() -> None:
    told = figures((2, failed("b", role="shadow")))
    assert of_shadow(told) == {"moetune_shadow_requests": 2, "moetune_shadow_failed": 2}
    assert of_sides(told) == {}


def test_a_shadow_that_goes_is_forgotten() -> None:
    comparisons = seen((3, answered("b", **SHADOW, agreement=1.0)))
    comparisons.forget([STATE, rollout("c")])
    assert comparisons.figures(STATE, NOW) is not None
    comparisons.forget([rollout("a")])
    assert comparisons.figures(STATE, NOW) is None
