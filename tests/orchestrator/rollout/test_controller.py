"""What goes into the log by itself."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Barrier
from typing import Any

import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.log import Decision
from orchestrator.registry.models import Event, Version
from orchestrator.registry.promote import promote, rollback
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from orchestrator.rollout.controller import ACTOR, RolloutController
from orchestrator.rollout.progression import PlanProgression
from orchestrator.rollout.timeline import Timeline
from orchestrator.rollout.window import Windows

Begin = Callable[..., Event]
SPEC = GuardSpec(plan_requests=0)


def states(registry: Registry) -> list[Rollout]:
    return [Timeline()(state) for state in registry.rollouts().values()]


@pytest.fixture
def planner() -> PlanProgression:
    return PlanProgression(SPEC, Windows(SPEC))


def ending(state: Rollout, _: datetime) -> Decision | None:
    evidence = {"check": "latency"}
    ended = state.canary and state.canary.version
    if ended is None:
        return None
    return Decision(action="abort", version=ended, reason="slow", evidence=evidence)


def test_a_plan_leads_to_a_promotion_that_rests_on_the_gate(
    registry: Registry, versions: list[Version], begin: Begin, planner: PlanProgression
) -> None:
    begin(0)
    begin(1, plan="5%,25%,100% every 1s")
    controller = RolloutController(registry, [planner])

    async def look_after() -> None:
        task = asyncio.create_task(controller.run(lambda: states(registry)))
        while len(registry.history("home")) < 4:
            await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(asyncio.wait_for(look_after(), 30))
    events = registry.history("home")
    assert [event.action for event in events] == ["promote", "canary", "advance", "promote"]
    assert {event.actor for event in events[2:]} == {ACTOR}
    assert registry.champion("home") == versions[1]
    assert events[3].evidence["candidate"]["value"] == 2.0
    assert events[3].previous == versions[0].id
    # … and so the next version is judged against it.
    event = promote(registry, versions[2], "home", actor="ann", metric="validation/loss")
    assert event.evidence["champion"]["value"] == 2.0


def test_the_first_adviser_with_something_to_say_is_followed(
    registry: Registry, begin: Begin, planner: PlanProgression
) -> None:
    begin(0)
    begin(1, plan="5%,100% every 1s")
    [event] = RolloutController(registry, [lambda *_: None, ending, planner]).ask(states(registry))
    assert (event.action, event.reason, event.evidence) == ("abort", "slow", {"check": "latency"})
    assert RolloutController(registry, [ending, planner]).ask(states(registry)) == []


def test_what_was_decided_on_an_older_log_is_dropped(registry: Registry, begin: Begin) -> None:
    begin(0)
    begin(1, canary="10%")
    known = states(registry)
    rollback(registry, "home", actor="ann")
    begin(2, canary="10%")
    assert RolloutController(registry, [ending]).ask(known) == []
    assert len(RolloutController(registry, [ending]).ask(states(registry))) == 1


def test_of_several_gateways_one_takes_the_step(registry: Registry, begin: Begin) -> None:
    begin(0)
    begin(1, canary="10%")
    known, together = states(registry), Barrier(6)

    def ask(_: int) -> list[Any]:
        together.wait(10)
        return RolloutController(registry, [ending]).ask(known)

    with ThreadPoolExecutor(6) as pool:
        followed = [event for events in pool.map(ask, range(6)) for event in events]
    assert len(followed) == 1
    assert [e.action for e in registry.history("home")] == ["promote", "canary", "abort"]
