"""The ways back: rollback and abort. Apart from promotion, since they must be quick to load."""

from orchestrator.registry.log import Decision, appended
from orchestrator.registry.models import Event
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout, state_of
from workers.config.base import InputError


def rollback(registry: Registry, name: str, *, actor: str, reason: str = "") -> Event:
    """Take back what was done last: end the canary, or go back to the champion before this one.

    Rolling back again goes further back: a version that was rolled back from is not returned to
    except by promoting it anew. After promotions A, B, C, two rollbacks lead to B and to A; a
    promotion of D then, rolled back, leads to A.
    """

    def decide(events: list[Event]) -> Decision:
        state = _used(name, state_of(events))
        why = reason.strip() or "rolled back"
        if state.canary:
            return Decision(action="abort", version=state.canary.version, reason=why)
        if state.previous is None:
            raise InputError(f"{name}: there is no earlier champion to go back to")
        return Decision(action="rollback", version=state.previous, reason=why)

    return appended(registry, name, actor, decide)


def abort(registry: Registry, name: str, *, actor: str, reason: str = "") -> Event:
    """End what stands beside the champion: the canary, and where there is none, the shadow."""

    def decide(events: list[Event]) -> Decision:
        state = _used(name, state_of(events))
        ended = state.canary.version if state.canary else state.shadow
        if ended is None:
            raise InputError(f"{name}: it has no canary and no shadow")
        return Decision(action="abort", version=ended, reason=reason.strip() or "aborted")

    return appended(registry, name, actor, decide)


def _used(name: str, state: Rollout | None) -> Rollout:
    if state is None:
        raise InputError(f"{name}: nothing was promoted to this name")
    return state
