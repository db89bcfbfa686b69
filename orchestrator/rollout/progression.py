"""Plans that go on by themselves: each step at its time, and not before enough was seen of it."""

from datetime import datetime

from typing_extensions import TypedDict

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.describe import percent
from orchestrator.registry.log import Decision
from orchestrator.registry.state import Rollout
from orchestrator.rollout.window import Windows, counts


class PlanProgression:
    """An opinion on every name's state: asked after the guard, which has nothing against it."""

    def __init__(self, spec: GuardSpec, windows: Windows) -> None:
        self._wanted = spec.plan_requests if spec.on else 0
        self._windows = windows

    def __call__(self, state: Rollout, now: datetime) -> Decision | None:
        """The next step; None where there is none, or where it is not yet time."""
        canary = state.canary
        if canary is None or canary.due is None or now < canary.due:
            return None
        seen = self._windows.of(state.name, canary.version, canary.at, now)
        if sum(record.role == "canary" for record in seen.answers) < self._wanted:
            return None
        step, share = canary.step + 1, canary.next_share
        return Decision(
            action="promote" if share == 1 else "advance",
            version=canary.version,
            reason=f"step {step + 1} of {len(canary.plan.steps)} of its plan",
            evidence={"step": step, "share": share, "seen": seen.figures()},
        )


FEWEST = 20
"""Requests before anything is odd."""
CHANCE = 0.01
"""That as many users as requests would fall on one side: less than that is odd."""
ADVICE = "few users ask: name each one in the field `user`, or change the share"


class Reach(TypedDict):
    """Requests of a canary's step, and what is odd about them."""

    canary: int
    champion: int
    warning: str | None


def reach(state: Rollout, windows: Windows, now: datetime) -> Reach | None:
    """Requests of this step that this gateway has lately sent to the canary and to the champion,
    and a warning where one side had none of them, which is hardly chance. None without a canary."""
    canary = state.canary
    if canary is None:
        return None
    lately = windows.of(state.name, canary.version, canary.at, now)
    met = sum(record.role == "canary" and counts(record) for record in lately.seen)
    others = windows.of(state.name, state.champion, canary.at, now).requests
    return {"canary": met, "champion": others, "warning": _odd(met, others, canary.share)}


def _odd(met: int, others: int, share: float) -> str | None:
    if met + others < FEWEST:
        return None
    if not met and (1 - share) ** others < CHANCE:
        return f"none of the last {others} requests met the canary of {percent(share)}; {ADVICE}"
    if not others and share**met < CHANCE:
        return f"all of the last {met} requests met the canary of {percent(share)}; {ADVICE}"
    return None
