"""Times of logs whose writers' clocks are wrong, and of a clock that is set while we look on."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.state import Rollout
from orchestrator.rollout.guard import Guard
from orchestrator.rollout.progression import PlanProgression
from orchestrator.rollout.timeline import Timeline
from orchestrator.rollout.window import Windows
from tests.orchestrator.rollout.traffic import NOW, answered, canary, failed, observed, rollout

HOUR = timedelta(hours=1)
WRONG = [-HOUR, timedelta(), HOUR]


class Clocks:
    """A process's own clock, and the one on the wall."""

    def __init__(self) -> None:
        self.steady = datetime.fromtimestamp(5000, NOW.tzinfo)
        self.wall = NOW

    def timeline(self) -> Timeline:
        return Timeline(lambda: self.steady, lambda: self.wall)

    def pass_(self, seconds: float) -> None:
        self.steady += timedelta(seconds=seconds)
        self.wall += timedelta(seconds=seconds)


def plain() -> Rollout:
    """A champion that has stood for ten minutes."""
    return rollout("a")


def with_canary(at: datetime, plan: str = "5%,100% every 5m") -> Rollout:
    begun = replace(canary(plan), since=at, at=at)
    return replace(plain(), revision=2, canary=begun)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_guard_sees_a_canary_whatever_clock_its_promoter_has(wrong: timedelta) -> None:
    clocks, spec = Clocks(), GuardSpec()
    windows, timeline = Windows(spec), clocks.timeline()
    timeline(plain())
    clocks.pass_(60)
    state = with_canary(clocks.wall + wrong)
    assert Guard(spec, windows)(timeline(state), clocks.steady) is None
    clocks.pass_(1)
    lots = (200, answered("a", at=clocks.steady)), (20, failed("b", at=clocks.steady))
    observed(windows, *lots)
    clocks.pass_(1)
    decision = Guard(spec, windows)(timeline(state), clocks.steady)
    assert decision is not None
    assert (decision.action, decision.version) == ("abort", "b")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_plans_step_lasts_its_time_whatever_clock_its_promoter_has(wrong: timedelta) -> None:
    clocks, spec = Clocks(), GuardSpec(plan_requests=0)
    plans, timeline = PlanProgression(spec, Windows(spec)), clocks.timeline()
    timeline(plain())
    state = with_canary(clocks.wall + wrong)
    timeline(state)
    clocks.pass_(299)
    assert plans(timeline(state), clocks.steady) is None
    clocks.pass_(1)
    assert plans(timeline(state), clocks.steady) is not None


@pytest.mark.parametrize("set_", WRONG)
def test_a_clock_that_is_set_changes_nothing(set_: timedelta) -> None:
    clocks = Clocks()
    timeline, state = clocks.timeline(), with_canary(NOW)
    before = timeline(state)
    clocks.wall += set_
    clocks.pass_(10)
    assert timeline(state) == before


def test_what_is_older_than_the_process_is_as_old_as_its_log_says() -> None:
    clocks = Clocks()
    seen = clocks.timeline()(with_canary(NOW - timedelta(minutes=3)))
    assert seen.canary is not None
    assert clocks.steady - seen.canary.at == timedelta(minutes=3)
    assert clocks.steady - seen.since == timedelta(minutes=10)
    ahead = clocks.timeline()(with_canary(NOW + HOUR))
    assert ahead.canary is not None
    assert ahead.canary.at == clocks.steady
