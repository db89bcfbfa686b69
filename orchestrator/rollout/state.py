"""What a name's log comes to. The log is the only truth; everything else derives from here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce
from typing import Any

from orchestrator.records import BASE, Event
from orchestrator.rollout.plan import Plan, plan_of


@dataclass(frozen=True)
class Canary:
    """A version that a share of the users meets."""

    version: str
    plan: Plan
    since: datetime
    """When it came."""
    at: datetime
    """When this step of its plan began."""
    step: int = 0

    @property
    def share(self) -> float:
        """Of the users, 0 … 1."""
        return self.plan.steps[self.step]

    @property
    def due(self) -> datetime | None:
        """When the next step may come; None where there is none."""
        last = self.step == len(self.plan.steps) - 1
        return None if last or self.plan.every is None else self.at + self.plan.every

    @property
    def next_share(self) -> float:
        """The share of the next step; 1 is the promotion."""
        return self.plan.steps[self.step + 1]


@dataclass(frozen=True)
class Rollout:
    """One name: who answers for it, and what is on its way."""

    name: str
    revision: int
    line: tuple[str, ...]
    """Champions that rollbacks lead back to, oldest first, the present one last; never empty."""
    since: datetime
    """When the present champion came."""
    fallbacks: int = 0
    """Times in a row that the guard has changed the champion."""
    predecessor: str | None = None
    """Whom the present champion has replaced by a promotion."""
    canary: Canary | None = None
    shadow: str | None = None
    compared: int = 0
    """Answers of the shadow that the log tells of."""

    @property
    def champion(self) -> str:
        """A version's id, or `base`."""
        return self.line[-1]

    @property
    def previous(self) -> str | None:
        """Where a rollback leads."""
        return self.line[-2] if len(self.line) > 1 else None

    @property
    def answering(self) -> tuple[str, ...]:
        """Versions that requests go to: champion, canary and shadow, as far as there are such."""
        found = (self.champion, self.canary and self.canary.version, self.shadow)
        return tuple(version for version in found if version and version != BASE)

    @property
    def concerned(self) -> tuple[str, ...]:
        """All that stands here; of those that answered lately, the guard remembers it."""
        found = (*self.answering, self.previous, self.predecessor, BASE)
        return tuple(dict.fromkeys(version for version in found if version))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        canary = self.canary
        return {
            "name": self.name,
            "revision": self.revision,
            "champion": self.champion,
            "since": self.since.isoformat(),
            "previous": self.previous,
            "shadow": self.shadow,
            "canary": canary
            and {
                "version": canary.version,
                "share": canary.share,
                "plan": str(canary.plan),
                "step": canary.step + 1,
                "steps": len(canary.plan.steps),
                "next_step_at": canary.due and canary.due.isoformat(),
            },
        }


def state_of(events: Sequence[Event]) -> Rollout | None:
    """The state after these events, which are a name's whole log; None where it is empty."""
    return reduce(_after, events, None)


def _after(state: Rollout | None, event: Event) -> Rollout:
    if state is None or event.action in ("promote", "rollback", "fallback"):
        return _with_champion(state, event)
    return replace(_beside(state, event), revision=event.revision)


def _with_champion(state: Rollout | None, event: Event) -> Rollout:
    """A new champion ends what stood beside the old one: that was judged against the old one."""
    line = state.line if state else ()
    fallbacks = state.fallbacks + 1 if state and event.action == "fallback" else 0
    if state and event.action != "promote":  # back, or to the base in place of what failed
        line = line[:-1]
    if line[-1:] != (event.version,) or event.action == "promote":
        line = (*line, event.version)
    replaced = state.champion if state and event.action == "promote" else None
    return Rollout(event.name, event.revision, line, event.at, fallbacks, replaced)


def _beside(state: Rollout, event: Event) -> Rollout:
    kept = _without(state, event.version)
    match event.action:
        case "canary":
            plan = plan_of(event.evidence)
            return replace(kept, canary=Canary(event.version, plan, event.at, event.at))
        case "shadow":
            return replace(kept, shadow=event.version, compared=0)
        case "advance":
            assert state.canary is not None, "only a canary advances"
            step = replace(state.canary, step=event.evidence["step"], at=event.at)
            return replace(state, canary=step)
        case "compare":
            return replace(state, compared=event.evidence["requests"])
    return kept


def _without(state: Rollout, version: str) -> Rollout:
    """The version no longer stands beside the champion."""
    return replace(
        state,
        canary=None if state.canary and state.canary.version == version else state.canary,
        shadow=None if state.shadow == version else state.shadow,
    )
