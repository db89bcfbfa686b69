"""What a name's log comes to. The log is the only truth; everything else derives from here."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from typing_extensions import TypedDict

from orchestrator.registry.models import BASE, Event
from orchestrator.registry.plan import Plan, plan_of
from workers.config.base import StorageError, one_line


class CanaryState(TypedDict):
    """A canary, in plain values."""

    version: str
    share: float
    plan: str
    step: int
    steps: int
    next_step_at: str | None


class RolloutState(TypedDict):
    """What stands behind a name, in plain values."""

    name: str
    revision: int
    champion: str
    since: str
    previous: str | None
    shadow: str | None
    canary: CanaryState | None


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

    def as_dict(self) -> CanaryState:
        """Plain values, for JSON."""
        return {
            "version": self.version,
            "share": self.share,
            "plan": str(self.plan),
            "step": self.step + 1,
            "steps": len(self.plan.steps),
            "next_step_at": self.due.isoformat() if self.due else None,
        }


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
    gone: frozenset[str] = frozenset()
    """Versions that users met, and that were deleted since."""

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

    def as_dict(self) -> RolloutState:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "revision": self.revision,
            "champion": self.champion,
            "since": self.since.isoformat(),
            "previous": self.previous,
            "shadow": self.shadow,
            "canary": self.canary.as_dict() if self.canary else None,
        }


class Unreadable(StorageError):  # noqa: N818
    """An event that this version of moetune cannot read: a newer one has written it, perhaps."""

    def __init__(self, name: str, revision: int, why: str) -> None:
        super().__init__(f"{name}: revision {revision} of its log cannot be read here: {why}")
        self.name, self.revision = name, revision


def state_of(events: Iterable[Event], before: Rollout | None = None) -> Rollout | None:
    """The state after these events: a name's whole log, or what came after the state `before`;
    None where there is nothing, or the name was deleted. Unreadable where an event's evidence is
    not what belongs to it."""
    line = list(before.line) if before else []
    state = before
    for event in events:
        try:
            state = _after(state, event, line)
        except (ValueError, LookupError, TypeError) as error:
            raise Unreadable(event.name, event.revision, one_line(error)) from None
    return replace(state, line=tuple(line)) if state else None


def _after(state: Rollout | None, event: Event, line: list[str]) -> Rollout | None:
    if event.action == "delete":
        line.clear()
        return None
    if state and event.action == "drop":
        return _dropped(state, event, line)
    if state is None or event.action in ("promote", "rollback", "fallback"):
        return _with_champion(state, event, line)
    return replace(_beside(state, event), revision=event.revision)


def _with_champion(state: Rollout | None, event: Event, line: list[str]) -> Rollout:
    """A new champion ends what stood beside the old one: that was judged against the old one.

    `line` grows and shrinks in place, and the state gets its end only: a copy of the whole for each
    event would make a long log quadratic.
    """
    fallbacks = state.fallbacks + 1 if state and event.action == "fallback" else 0
    replaced = state.champion if state and event.action == "promote" else None
    gone = state.gone - {event.version} if state else frozenset()
    if state and event.action != "promote":  # back, or to the base in place of what failed
        line.pop()
    if line[-1:] != [event.version] or event.action == "promote":
        line.append(event.version)
    return Rollout(
        event.name,
        event.revision,
        tuple(line[-2:]),
        event.at,
        fallbacks,
        replaced,
        gone=gone,
    )


def _dropped(state: Rollout, event: Event, line: list[str]) -> Rollout:
    """A version that was deleted is nothing that a rollback could lead to."""
    left = [version for version in line if version != event.version]
    line[:] = [now for before, now in zip(["", *left], left, strict=False) if now != before]
    if not line or state.champion == event.version:
        raise ValueError("the champion cannot be deleted")
    return replace(
        state,
        revision=event.revision,
        line=tuple(line[-2:]),
        predecessor=None if state.predecessor == event.version else state.predecessor,
        gone=state.gone | {event.version},
    )


def _beside(state: Rollout, event: Event) -> Rollout:
    kept = _without(state, event.version)
    match event.action:
        case "canary":
            plan = plan_of(event.evidence)
            canary = Canary(event.version, plan, event.at, event.at)
            return replace(kept, canary=canary, gone=kept.gone - {event.version})
        case "shadow":
            return replace(kept, shadow=event.version, compared=0)
        case "advance":
            step = event.evidence["step"]
            if state.canary is None or step not in range(len(state.canary.plan.steps)):
                raise ValueError(f"there is no canary with a step {step}")
            return replace(state, canary=replace(state.canary, step=step, at=event.at))
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
