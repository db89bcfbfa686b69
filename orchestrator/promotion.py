"""Promotion and rollback: who becomes the champion of a name, and on what evidence."""

import getpass
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from orchestrator.gate import Gate, Mode, compare, metric_reasons
from orchestrator.registry import Event, Registry, Version, check_name
from workers.spec import InputError

Decision = tuple[str, str, dict[str, Any]]
"""A version's id, the reason, the evidence."""


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
    gate: Gate | None = None,
) -> Event:
    """Make a version the champion of a name, or raise `GateRefused` with every reason.

    `metric` and `mode` are the study's (`SearchSpec`). `force` overrides the gate, wants a reason
    and leaves what it overrode in the event's evidence. When somebody else promotes in the same
    moment, the version is judged again, against the new champion.
    """
    chosen = registry.version(version) if isinstance(version, str) else version
    if force and not reason.strip():
        raise InputError(f"{to}: a forced promotion needs a reason")
    registry.verify(chosen)
    router = (gate or Gate()).router_reasons(registry, chosen)

    def decide(events: list[Event]) -> Decision:
        champion = registry.version(events[-1].version) if events else None
        if champion and champion.id == chosen.id:
            raise InputError(f"{to}: version {chosen.id} is its champion already")
        evidence = compare(registry, chosen, champion, metric, mode)
        reasons = metric_reasons(evidence, champion, events) + router
        if reasons and not force:
            raise GateRefused(to, chosen, reasons)
        overridden = {"forced": bool(reasons), "reasons": reasons}
        return chosen.id, reason.strip() or "passed the gate", {**evidence, **overridden}

    return _append(registry, to, "promote", actor, decide)


def rollback(registry: Registry, name: str, *, actor: str, reason: str = "") -> Event:
    """Go back to the champion before this one.

    Rolling back again goes further back: a version that was rolled back from is not returned to
    except by promoting it anew. After promotions A, B, C, two rollbacks lead to B and to A; a
    promotion of D then, rolled back, leads to A.
    """

    def decide(events: list[Event]) -> Decision:
        if not events:
            raise InputError(f"{name}: nothing was promoted to this name")
        line = standing(events)
        if len(line) == 1:
            raise InputError(f"{name}: there is no earlier champion to go back to")
        return line[-2], reason.strip() or "rolled back", {}

    return _append(registry, name, "rollback", actor, decide)


def this_user() -> str:
    """Who decides; in a container the user may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def standing(events: Sequence[Event]) -> list[str]:
    """The champions that rollbacks would return to, oldest first, the present one last."""
    line: list[str] = []
    for event in events:
        if event.action == "promote":
            line.append(event.version)
        else:
            line.pop()
    return line


def _append(
    registry: Registry,
    name: str,
    action: Literal["promote", "rollback"],
    actor: str,
    decide: Callable[[list[Event]], Decision],
) -> Event:
    """Decide on the log as it stands and append; decide again when it has moved meanwhile.

    Ends: every round that loses is one that somebody else has won.
    """
    check_name(name, "name")
    if not actor.strip() or len(actor) > 200:
        raise InputError(f"{name}: an actor of 1 to 200 characters is needed")
    while True:
        events = registry.history(name)
        version, reason, evidence = decide(events)
        last = events[-1] if events else None
        event = Event(
            name=name,
            revision=last.revision + 1 if last else 1,
            action=action,
            version=version,
            previous=last.version if last else None,
            actor=actor.strip(),
            reason=reason,
            evidence=evidence,
            at=datetime.now(UTC),
        )
        if registry.append(event):
            return event
