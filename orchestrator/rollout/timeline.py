"""When what names' logs tell has happened, by this process's own clock.

The times in a log are of whoever wrote it: a laptop may be an hour ahead, or this machine's clock
be set back. What happens while this process looks on happens when it is seen; only of what is older
the log's own time says how old.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.registry.state import Rollout
from orchestrator.telemetry.request_record import steady, today

Clock = Callable[[], datetime]


class Timeline:
    """Remembers when it has seen each time of a name's state first."""

    def __init__(self, now: Clock = steady, wall: Clock = today) -> None:
        self._now, self._wall = now, wall
        self._seen: dict[str, dict[datetime, datetime]] = {}

    def __call__(self, state: Rollout) -> Rollout:
        """The same state, its times by `orchestrator.telemetry.request_record.steady`."""
        canary, known = state.canary, self._seen.get(state.name)
        times = {state.since, *((canary.since, canary.at) if canary else ())}
        seen = {at: self._first_seen(at, known) for at in times}
        self._seen[state.name] = seen
        if canary:
            canary = replace(canary, since=seen[canary.since], at=seen[canary.at])
        return replace(state, since=seen[state.since], canary=canary)

    def _first_seen(self, at: datetime, known: dict[datetime, datetime] | None) -> datetime:
        """Of a name that was not known, everything may be older than this process."""
        now = self._now()
        if known is None:
            return now - max(timedelta(), self._wall() - at)
        return known.get(at, now)
