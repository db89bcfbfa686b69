"""Writes into the log what guard, plans and comparisons come to, on nobody's behalf."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from orchestrator.registry.log import Decision, append
from orchestrator.registry.models import Event
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from orchestrator.telemetry.request_record import steady

log = logging.getLogger(__name__)
ACTOR = "moetune"
"""Who is named in the log where nobody has decided."""
EVERY_SECONDS = 1.0
Advisers = Sequence[Callable[[Rollout, datetime], Decision | None]]


class RolloutController:
    """Asks the advisers about every name, in their order, and follows the first that has
    something to say.

    Any number of gateways may have one: what was decided on a log that has moved meanwhile is
    dropped, and considered anew.
    """

    def __init__(self, registry: Registry, advisers: Advisers) -> None:
        self._registry, self._advisers = registry, advisers

    async def run(self, states: Callable[[], Iterable[Rollout]]) -> None:
        """Ask every second until cancelled; `states` is what the registry said last, its times by
        `steady`."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await asyncio.to_thread(self.ask, list(states()))
            except Exception:
                log.exception("the roll-outs are not looked after")

    def ask(self, states: Iterable[Rollout]) -> list[Event]:
        """Ask once; returns what went into the log. Blocks. Where it fails for one name, the others
        are looked after all the same."""
        return [event for state in states if (event := self._look(state))]

    def _look(self, state: Rollout) -> Event | None:
        try:
            decision = self._advice(state)
            return self._follow(state, decision) if decision else None
        except Exception:
            log.exception("%s is not looked after", state.name)
            return None

    def _advice(self, state: Rollout) -> Decision | None:
        now = steady()
        advice = (adviser(state, now) for adviser in self._advisers)
        return next((decision for decision in advice if decision), None)

    def _follow(self, state: Rollout, decision: Decision) -> Event | None:
        def decide(events: list[Event]) -> Decision | None:
            moved = events[-1].revision != state.revision
            return None if moved else _with_judgement(decision, events)

        event = append(self._registry, state.name, ACTOR, decide)
        if event:
            log.warning("%s: %s %s: %s", event.name, event.action, event.version, event.reason)
        return event


def _with_judgement(decision: Decision, events: Sequence[Event]) -> Decision:
    """A plan's promotion rests on what the gate said when the canary began."""
    if decision.action != "promote":
        return decision
    begun = next(e for e in reversed(events) if e.action == "canary")
    evidence: dict[str, Any] = {**begun.evidence, **decision.evidence}
    return decision.model_copy(update={"evidence": evidence})
