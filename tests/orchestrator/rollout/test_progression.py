"""When a plan takes its next step."""

from typing import Any

import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.log import Decision
from orchestrator.registry.state import Rollout
from orchestrator.rollout.progression import PlanProgression
from orchestrator.rollout.window import Windows
from tests.orchestrator.rollout.traffic import NOW, ago, answered, canary, observed, rollout

PLAN = "5%,25%,100% every 5m"


def stepped(state: Rollout, seen: int = 50, at: float = 1, **spec: Any) -> Decision | None:
    limits = GuardSpec(**spec)
    windows = Windows(limits)
    observed(windows, (seen, answered("b", role="canary", at=ago(at))))
    return PlanProgression(limits, windows)(state, NOW)


def test_the_next_step_comes_at_its_time() -> None:
    assert stepped(rollout(canary=canary(PLAN, 299))) is None
    decision = stepped(rollout(canary=canary(PLAN, 300)))
    assert decision is not None
    assert (decision.action, decision.version) == ("advance", "b")
    assert (decision.evidence["step"], decision.evidence["share"]) == (1, 0.25)
    assert decision.evidence["seen"]["requests"] == 50
    assert decision.reason == "step 2 of 3 of its plan"


def test_the_step_to_all_is_the_promotion() -> None:
    decision = stepped(rollout(canary=canary("5%,100% every 5m")))
    assert decision is not None
    assert decision.action == "promote"


@pytest.mark.parametrize("plan", ["10%", "5%"])
def test_without_a_next_step_nothing_happens(plan: str) -> None:
    assert stepped(rollout(canary=canary(plan, 10_000))) is None
    assert stepped(rollout()) is None


def test_a_step_waits_until_enough_was_seen_of_this_one() -> None:
    state = rollout(canary=canary(PLAN, 10_000, 300))
    assert stepped(state, seen=19) is None
    assert stepped(state, seen=50, at=301) is None, "seen in the step before"
    assert stepped(state, seen=20) is not None
    assert stepped(state, seen=0, plan_requests=0) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"role": "pinned"},
        {"role": "served"},
        {"status": 400, "error": "invalid_schema"},
        {"status": 499, "error": "client_closed_request"},
        {"status": 500, "error": "engine_error"},
    ],
    ids=lambda other: "-".join(map(str, other.values())),
)
def test_a_step_wants_answers_of_the_canarys_own_share(other: dict[str, Any]) -> None:
    limits = GuardSpec()
    windows = Windows(limits)
    state = rollout(canary=canary("5%,100% every 5m"))
    own = {"role": "canary", **other}
    observed(windows, (19, answered("b", role="canary")), (500, answered("b", **own)))
    assert PlanProgression(limits, windows)(state, NOW) is None
    observed(windows, (20, answered("b", role="canary")))
    assert PlanProgression(limits, windows)(state, NOW)


def test_without_a_guard_time_alone_counts() -> None:
    assert stepped(rollout(canary=canary(PLAN)), seen=0, on=False) is not None
