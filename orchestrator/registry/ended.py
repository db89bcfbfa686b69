"""What the guard has ended does not come back unnoticed."""

from collections.abc import Sequence

from orchestrator.registry.models import Event, Version


def guard_reasons(version: Version, events: Sequence[Event]) -> list[str]:
    """Where the guard has ended the version here, and nobody has given it traffic against that
    since: what it was ended for. A person who has rolled back may go forward again."""
    for event in reversed(events):
        if event.action in ("promote", "canary") and event.version == version.id:
            return []
        if _guard_ended(event) == version.id:
            return [f"the guard ended it at {event.at:%Y-%m-%d %H:%M} UTC: {event.reason}"]
    return []


def _guard_ended(event: Event) -> str | None:
    """The version that the guard ended by an event; its evidence names the check that failed."""
    if "check" not in event.evidence:
        return None
    return {"abort": event.version, "fallback": event.previous}.get(event.action)
