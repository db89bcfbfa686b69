"""Writes what guard, plans and shadows come to into the log, on behalf of nobody."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.records import Event
from orchestrator.registry import Registry
from orchestrator.rollout.log import Decision, append
from orchestrator.rollout.state import Rollout, state_of

log = logging.getLogger(__name__)
ACTOR = "moetune"
"""Who is named in the log where nobody has decided."""
Adviser = Callable[[Rollout, datetime], Decision | None]


class Keeper:
    """Asks the advisers of every name, in their order; the first that has something to say is
    followed.

    Any number of gateways may do so: what was decided on a log that has moved meanwhile is
    dropped, and considered again.
    """

    def __init__(self, registry: Registry, advisers: Sequence[Adviser]) -> None:
        self._registry, self._advisers = registry, advisers

    async def __call__(self, states: Iterable[Rollout]) -> None:
        """Ask once."""
        for state in states:
            now = datetime.now(UTC)
            advice = (adviser(state, now) for adviser in self._advisers)
            decision = next((decision for decision in advice if decision), None)
            if decision:
                await self._follow(state, decision)

    async def _follow(self, state: Rollout, decision: Decision) -> None:
        def decide(events: list[Event]) -> Decision | None:
            moved = state_of(events) != state
            return None if moved else _with_judgement(decision, events)

        event = await asyncio.to_thread(append, self._registry, state.name, ACTOR, decide)
        if event:
            log.warning("%s: %s %s: %s", event.name, event.action, event.version, event.reason)


def _with_judgement(decision: Decision, events: Sequence[Event]) -> Decision:
    """A plan's promotion rests on what the gate said when the canary began."""
    if decision.action != "promote":
        return decision
    begun = next(e for e in reversed(events) if e.action == "canary")
    evidence: dict[str, Any] = {**begun.evidence, **decision.evidence}
    return decision.model_copy(update={"evidence": evidence})
