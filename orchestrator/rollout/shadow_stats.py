"""What shadows' answers are like beside those that were returned."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from typing_extensions import TypedDict

from orchestrator.registry.log import Decision
from orchestrator.registry.state import Rollout
from orchestrator.rollout.window import Windows, failed
from orchestrator.telemetry.request_record import RequestRecord

FIRST_REPORT = 100
"""Answers of a shadow that the log is told of first; then ten times as many, and so on."""
EVER = datetime.min.replace(tzinfo=UTC)


class BothSides(TypedDict):
    """A figure of the shadow, and of its champion."""

    shadow: float
    champion: float


class ShadowFigures(TypedDict):
    """What a shadow's answers were like."""

    requests: int
    failed: int
    equal: float
    agreement: float
    tokens: BothSides
    p95_seconds: BothSides


@dataclass
class ShadowTally:
    """One shadow since this gateway has known it."""

    requests: int = 0
    failed: int = 0
    equal: int = 0
    agreement: float = 0.0

    def add(self, record: RequestRecord) -> None:
        """Count an answer in."""
        self.requests += 1
        if record.agreement is None:
            self.failed += 1
        else:
            self.equal += record.agreement == 1
            self.agreement += record.agreement


def compared(record: RequestRecord) -> bool:
    """Whether a shadow was compared with what was returned, or is to blame that it was not."""
    return record.role == "shadow" and (record.agreement is not None or failed(record))


class Comparisons:
    """An observer of shadows; also an opinion on names' states: that the log should be told."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._tallies: dict[tuple[str | None, str], ShadowTally] = {}

    def observe(self, record: RequestRecord) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        if compared(record):
            key = (record.name, record.version)
            self._tallies.setdefault(key, ShadowTally()).add(record)

    def forget(self, states: Iterable[Rollout]) -> None:
        """Drop the shadows that stand behind none of these names; one that comes again begins
        anew."""
        kept = {(state.name, state.shadow) for state in states}
        for key in [key for key in self._tallies if key not in kept]:
            del self._tallies[key]

    def __call__(self, state: Rollout, now: datetime) -> Decision | None:
        """A report, at 100 answers, at 1000, …; it changes nothing."""
        figures = self.figures(state, now)
        due = max(FIRST_REPORT, 10 * state.compared)
        if state.shadow is None or figures is None or figures["requests"] < due:
            return None
        return Decision(
            action="compare", version=state.shadow, reason="shadow's answers", evidence={**figures}
        )

    def figures(self, state: Rollout, now: datetime) -> ShadowFigures | None:
        """Of a name's shadow, beside its champion; None where nothing was seen of one."""
        tally = self._tallies.get((state.name, state.shadow or ""))
        if state.shadow is None or tally is None:
            return None
        shadow = self._windows.shadow(state.name, state.shadow)
        champion = self._windows.of(state.name, state.champion, EVER, now)
        answers = max(1, tally.requests - tally.failed)
        return {
            "requests": tally.requests,
            "failed": tally.failed,
            "equal": round(tally.equal / answers, 4),
            "agreement": round(tally.agreement / answers, 4),
            "tokens": _both(shadow.tokens, champion.tokens),
            "p95_seconds": _both(shadow.p95, champion.p95),
        }


def _both(shadow: float, champion: float) -> BothSides:
    return {"shadow": round(shadow, 4), "champion": round(champion, 4)}
