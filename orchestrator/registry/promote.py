"""Promotion: who becomes the champion of a name, its canary or shadow, and on what evidence."""

from collections.abc import Sequence

from orchestrator.registry.ended import guard_reasons
from orchestrator.registry.gate import compare, metric_reasons
from orchestrator.registry.log import Decision, appended
from orchestrator.registry.models import BASE, Event, Version
from orchestrator.registry.plan import Stage
from orchestrator.registry.registry import Registry
from orchestrator.registry.router_gate import RouterGate
from orchestrator.registry.rules import check_name
from orchestrator.registry.state import Rollout, state_of
from workers.config.base import InputError
from workers.config.metrics import Mode


class GateRefused(InputError):  # noqa: N818
    """The gate's answer; `reasons` lists all of them."""

    def __init__(self, name: str, version: Version, reasons: Sequence[str]) -> None:
        super().__init__(
            f"{name}: version {version.id} is not promoted: {'; '.join(reasons)} "
            "(override with --force --reason TEXT)"
        )
        self.reasons = list(reasons)


def promote(  # noqa: PLR0913
    registry: Registry,
    version: str | Version,
    to: str,
    *,
    actor: str,
    metric: str,
    mode: Mode = "min",
    reason: str = "",
    force: bool = False,
    stage: Stage | None = None,
) -> Event:
    """Make a version the champion of a name, or its canary or shadow as `stage` says; or raise
    `GateRefused` with every reason.

    A canary meets users, so the whole gate stands before it. A shadow's answers go nowhere: it
    passes with the gate's reasons in its evidence, and is judged when it is promoted. `metric` and
    `mode` are the study's (`SearchSpec`). `force` overrides the gate, wants a reason and leaves
    what it overrode in the event's evidence. When somebody else promotes in the same moment, the
    version is judged again, against the new champion.
    """
    chosen = registry.version(version) if isinstance(version, str) else version
    stage = stage or Stage()
    check_stage(registry, to, stage, reason, force=force)
    registry.verify(chosen)
    check_own_name(to, registry.manifest(chosen).base.name, f"version {chosen.id}")
    router = RouterGate().reasons(registry, chosen)

    def decide(events: list[Event]) -> Decision:
        state = state_of(events)
        _check_begun(to, stage, state)
        champion = _standing(registry, to, chosen, state)
        evidence = compare(registry, chosen, champion, metric, mode)
        reasons = [
            *guard_reasons(chosen, events),
            *metric_reasons(evidence, champion, events),
            *router,
        ]
        if reasons and not force and stage.action != "shadow":
            raise GateRefused(to, chosen, reasons)
        evidence |= {"forced": bool(reasons) and force, "reasons": reasons, **stage.evidence()}
        passed = "for comparison only" if stage.action == "shadow" else "passed the gate"
        why = reason.strip() or passed
        return Decision(action=stage.action, version=chosen.id, reason=why, evidence=evidence)

    return appended(registry, to, actor, decide)


def check_stage(registry: Registry, to: str, stage: Stage, reason: str, *, force: bool) -> None:
    """What is wrong whatever the version is: InputError, before one is measured for it, say."""
    check_name(to, "name")
    if force and not reason.strip():
        raise InputError(f"{to}: a forced promotion needs a reason")
    _check_begun(to, stage, registry.rollout(to))


def _check_begun(name: str, stage: Stage, state: Rollout | None) -> None:
    if state is None and stage.action != "promote":
        raise InputError(f"{name}: has no champion yet; promote without --{stage.action} first")


def check_own_name(to: str, base: str, whose: str) -> None:
    """InputError where the name is that of the base."""
    if to == base:
        raise InputError(
            f"{to}: is what requests call the bare base of {whose}; promote to another name"
        )


def _standing(
    registry: Registry, name: str, chosen: Version, state: Rollout | None
) -> Version | None:
    """The champion to judge against; None where it is the bare base, as it is at first."""
    if state is None:
        return None
    if state.champion == chosen.id:
        raise InputError(f"{name}: version {chosen.id} is its champion already")
    return None if state.champion == BASE else registry.version(state.champion)


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
