"""When a canary's traffic is odd."""

import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.rollout.progression import reach
from orchestrator.rollout.window import Windows
from tests.orchestrator.rollout.traffic import NOW, ago, answered, canary, observed, rollout


@pytest.mark.parametrize(
    ("share", "met", "others", "warning"),
    [
        ("10%", 0, 43, None),
        ("10%", 0, 44, "none of the last 44 requests met the canary of 10%"),
        ("10%", 1, 400, None),
        ("10%", 19, 0, None),
        ("10%", 20, 0, "all of the last 20 requests met the canary of 10%"),
        ("10%", 20, 1, None),
        ("1%", 0, 459, "none of the last 459 requests met the canary of 1%"),
        ("90%", 43, 0, None),
        ("90%", 44, 0, "all of the last 44 requests met the canary of 90%"),
    ],
)
def test_one_side_without_any_request_is_odd(
    share: str, met: int, others: int, warning: str | None
) -> None:
    windows = Windows(GuardSpec())
    observed(windows, (met, answered("b", role="canary")), (others, answered("a")))
    told = reach(rollout(canary=canary(share)), windows, NOW)
    assert told is not None
    assert (told["canary"], told["champion"]) == (met, others)
    assert (told["warning"] or "").startswith(warning or "")
    assert (told["warning"] is None) == (warning is None)


def test_only_its_own_share_of_this_step_counts() -> None:
    """Not who asks for the version by its id, nor what came before this step."""
    windows = Windows(GuardSpec())
    before = answered("b", role="canary", at=ago(200))
    observed(windows, (60, answered("b")), (60, before), (100, answered("a")))
    told = reach(rollout(canary=canary("5%,10% every 5m", 300, 100)), windows, NOW)
    assert told is not None
    assert (told["canary"], told["champion"]) == (0, 100)
    assert told["warning"]


def test_without_a_canary_there_is_nothing_to_say() -> None:
    assert reach(rollout(), Windows(GuardSpec()), NOW) is None
