"""Plans that go on by themselves: each step at its time, and not before enough was seen of it."""

from datetime import datetime

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.log import Decision
from orchestrator.registry.state import Rollout
from orchestrator.rollout.window import Windows


class Plans:
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
        if sum(answered.role == "canary" for answered in seen.answers) < self._wanted:
            return None
        step, share = canary.step + 1, canary.next_share
        return Decision(
            action="promote" if share == 1 else "advance",
            version=canary.version,
            reason=f"step {step + 1} of {len(canary.plan.steps)} of its plan",
            evidence={"step": step, "share": share, "seen": seen.figures()},
        )
