"""The guard: ends canaries and takes champions back when what users get is not good enough."""

import logging
from datetime import UTC, datetime, timedelta

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.log import Decision
from orchestrator.registry.models import BASE
from orchestrator.registry.state import Canary, Rollout
from orchestrator.rollout.checks import Breach, Drift, drifting, failing, not_finite, slower
from orchestrator.rollout.window import Windows

log = logging.getLogger(__name__)
EVER = datetime.min.replace(tzinfo=UTC)
ONE_USER = 0.2
"""Share of a canary's requests above which one user's habits may be all that its drift shows."""


class Guard:
    """An opinion on every name's state, from what this gateway has seen."""

    def __init__(self, spec: GuardSpec, windows: Windows, drift: Drift | None = None) -> None:
        self._spec, self._windows, self._drift = spec, windows, drift
        self._helpless: dict[str, str] = {}
        """By name, the champion that was last found failing with nothing to fall back to."""

    def __call__(self, state: Rollout, now: datetime) -> Decision | None:
        """What is to be done now; None where all is well, or nothing can be said yet."""
        if not self._spec.on:
            return None
        return (
            self._on_canary(state, now) or self._on_shadow(state) or self._on_champion(state, now)
        )

    def _on_canary(self, state: Rollout, now: datetime) -> Decision | None:
        canary = state.canary
        breach = canary and (
            self._canary_seen(state, canary, now) or self._canary_drift(state, canary)
        )
        return _ended(canary.version, breach) if canary and breach else None

    def _on_shadow(self, state: Rollout) -> Decision | None:
        """A shadow hurts nobody; its figures are for people. But what is broken need not run on."""
        shadow = state.shadow
        breach = shadow and not_finite(self._windows.shadow(state.name, shadow))
        return _ended(shadow, breach) if shadow and breach else None

    def _on_champion(self, state: Rollout, now: datetime) -> Decision | None:
        breach = None if state.champion == BASE else self._champion_breach(state, now)
        refuge = breach and self._refuge(state)
        if breach and refuge:
            evidence = {**breach.as_evidence(), "failed": state.champion}
            return Decision(
                action="fallback", version=refuge, reason=breach.reason, evidence=evidence
            )
        if breach and self._helpless.get(state.name) != state.champion:
            self._helpless[state.name] = state.champion
            log.error("%s@%s: %s; nothing to fall back to", state.name, state.champion, breach)
        return None

    def _canary_seen(self, state: Rollout, canary: Canary, now: datetime) -> Breach | None:
        span = (canary.since, now)
        own = self._windows.of(state.name, canary.version, *span)
        others = self._windows.others(state.name, canary.version, *span)
        champion = self._windows.of(state.name, state.champion, *span)
        return (
            not_finite(own) or failing(own, others, self._spec) or slower(own, champion, self._spec)
        )

    def _canary_drift(self, state: Rollout, canary: Canary) -> Breach | None:
        """Where the champion's routing drifts too, or cannot be told, the requests may have
        changed: that is no canary's fault. Nor are the habits of a user who meets it."""
        if self._drift is None or self._spec.drift == "off":
            return None
        champion = self._drift(state.champion)
        if champion is None or champion.drifted:
            return None
        verdict = self._drift(canary.version)
        return None if verdict and verdict.busiest > ONE_USER else drifting(verdict)

    def _champion_breach(self, state: Rollout, now: datetime) -> Breach | None:
        own = self._windows.of(state.name, state.champion, state.since, now)
        others = self._windows.others(state.name, state.champion, state.since, now)
        breach = not_finite(own) or failing(own, others, self._spec)
        probation = timedelta(seconds=self._spec.probation_seconds)
        if state.predecessor and now - state.since <= probation:
            breach = breach or self._slower_than_before(state, state.predecessor, now)
        if self._drift and self._spec.drift == "all":
            breach = breach or drifting(self._drift(state.champion))
        return breach

    def _slower_than_before(self, state: Rollout, predecessor: str, now: datetime) -> Breach | None:
        """Where the others have become as slow meanwhile, without it, it is the machine."""
        name, windows, spec = state.name, self._windows, self._spec
        before, since = (EVER, state.since), (state.since, now)
        own, both = windows.of(name, state.champion, *since), {state.champion, predecessor}
        breach = slower(own, windows.of(name, predecessor, *before), spec)
        now_else, then_else = windows.elsewhere(name, *since), windows.elsewhere(name, *before)
        return None if slower(now_else, then_else, spec, frozenset(both)) else breach

    def _refuge(self, state: Rollout) -> str | None:
        """Where the policy leads, the guard's earlier steps taken into account."""
        places = {"previous": state.previous, "base": BASE}
        left = (places[step] for step in self._spec.fallback[state.fallbacks :])
        return next((version for version in left if version), None)


def _ended(version: str, breach: Breach) -> Decision:
    return Decision(
        action="abort", version=version, reason=breach.reason, evidence=breach.as_evidence()
    )
