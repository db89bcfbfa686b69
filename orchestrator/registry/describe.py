"""An event's evidence in one line, for people."""

from collections.abc import Mapping
from typing import Any

from orchestrator.registry.models import BASE, Event
from orchestrator.registry.plan import plan_of

STICKY = "(a request's `user`, else its key: each stays on one side)"


def evidence_line(event: Event) -> str:
    """What the decision rests on, and what it leads to."""
    evidence = event.evidence
    said = (
        f"plan {plan_of(evidence)}" if event.action == "canary" else None,
        f"{percent(evidence['share'])} of the users" if event.action == "advance" else None,
        _judged(evidence) if "metric" in evidence else None,
        _origin(evidence.get("candidate", {})),
        _gate(evidence) if evidence.get("reasons") else None,
        f"{_lost(event)} deleted" if event.action == "delete" else None,
        _compared(evidence) if event.action == "compare" else None,
        _seen(evidence.get("seen", evidence)) if {"seen", "check"} & evidence.keys() else None,
    )
    return "; ".join(part for part in said if part)


def percent(share: float) -> str:
    """As people write it: `2.5%`."""
    return f"{100 * share:.4g}%"


def _judged(evidence: Mapping[str, Any]) -> str:
    values = [evidence[role]["value"] for role in ("candidate", "champion") if role in evidence]
    mine, *champions = ("none" if value is None else f"{value:.4g}" for value in values)
    line = f"{evidence['metric']} {mine}" + "".join(f", champion's {value}" for value in champions)
    base = evidence.get("base", {})
    if base.get("value") is None:
        return line
    what = "" if base["metric"] == evidence["metric"] else f"{base['metric']} "
    return f"{line}, the base's {what}{base['value']:.4g}"


def _origin(candidate: Mapping[str, Any]) -> str | None:
    return f"brought in from {candidate['origin']}" if "origin" in candidate else None


def _gate(evidence: Mapping[str, Any]) -> str:
    return f"{'against the gate' if evidence['forced'] else 'the gate says'}: " + ", ".join(
        evidence["reasons"]
    )


def _compared(evidence: Mapping[str, Any]) -> str:
    tokens, seconds = evidence["tokens"], evidence["p95_seconds"]
    return (
        f"{evidence['requests']} answers, {percent(evidence['equal'])} equal to the champion's, "
        f"{percent(evidence['agreement'])} of the tokens; {evidence['failed']} failed; "
        f"{tokens['shadow']:.3g} tokens long against {tokens['champion']:.3g}; "
        f"p95 {seconds['shadow']:.3g} s against {seconds['champion']:.3g} s"
    )


def _seen(figures: Mapping[str, Any]) -> str:
    """A guard's figures; a drift's are its own."""
    if "error_rate" not in figures:
        return str(figures.get("why", ""))
    errors = ", ".join(f"{count} {code}" for code, count in figures["errors"].items())
    requests, p95 = figures["requests"], figures["p95_seconds"]
    return f"{requests} requests, {errors or 'no errors'}, p95 {p95:.3g} s"


def _forward(event: Event) -> str:
    """How to undo a rollback: by the gate, as ever."""
    if event.previous in (None, BASE):
        return ""
    return f"; forward again: moetune promote {event.name} --version {event.previous}"


def outcome(event: Event) -> str:
    """What a command has done."""
    version, before = f"{event.name}@{event.version}", event.previous or "nothing"
    match event.action:
        case "promote":
            return f"{event.name} is now {version} (before: {before})"
        case "rollback":
            return f"{event.name} is back at {version} (was {before}){_forward(event)}"
        case "canary":
            plan = plan_of(event.evidence)
            return f"{version} is the canary of {event.name}: {plan} of the users {STICKY}"
        case "shadow":
            return f"{version} is the shadow of {event.name}"
    return _over(event)


def _lost(event: Event) -> str:
    count = event.evidence["events"]
    return f"{count} event{'' if count == 1 else 's'}"


def _over(event: Event) -> str:
    if event.action == "delete":
        return f"{event.name} is deleted with its history ({_lost(event)})"
    how = "is deleted" if event.action == "drop" else "has ended"
    return f"{event.name}@{event.version} {how}; {event.name} stays {event.name}@{event.previous}"
