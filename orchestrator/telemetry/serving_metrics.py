"""Metrics of serving: what sets the series, from requests that ended and from engines."""

import weakref
from typing import Protocol

from orchestrator.telemetry.refresh import Refresh
from orchestrator.telemetry.request_record import RequestRecord
from orchestrator.telemetry.series import (
    ANSWER_TOKENS,
    BY_VERSION,
    DURATION,
    FIRST_TOKEN,
    OF_ENGINES,
    OF_REQUESTS,
    PER_TOKEN,
    PROMPT_TOKENS,
    REQUESTS,
    WRONG_KEYS,
    Series,
)
from workers.engine.protocol import Statistics

VERSIONS = 64
"""Pairs of name and version with labels of their own; later ones are `other`: what a process has
once shown, it shows for ever."""


class RequestMetrics:
    """An observer of requests. To be made inside Ray."""

    def __init__(self) -> None:
        self._made = {series: series.make() for series in (*OF_REQUESTS, WRONG_KEYS)}
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, record: RequestRecord) -> None:
        """Count and time one request."""
        labels = self._labels(record)
        self._made[REQUESTS].inc(1, {**labels, "outcome": outcome(record.status)})
        for series, tokens in (
            (PROMPT_TOKENS, record.prompt_tokens),
            (ANSWER_TOKENS, record.completion_tokens),
        ):
            if tokens:
                self._made[series].inc(tokens, labels)
        for series, seconds in times(record).items():
            self._made[series].observe(seconds, labels)

    def wrong_key(self) -> None:
        """Count a request whose key opens nothing."""
        self._made[WRONG_KEYS].inc()

    def _labels(self, record: RequestRecord) -> dict[str, str]:
        who = (record.name or "", record.version)
        if who not in self._seen and len(self._seen) >= VERSIONS:
            who = ("other", "other")
        self._seen.add(who)
        return dict(zip(BY_VERSION, (*who, record.role), strict=True))


def times(record: RequestRecord) -> dict[Series, float]:
    """What a request's times tell: of whole answers only its duration, of all the first token, and
    what was computed for each that followed."""
    first = record.first_token_seconds
    told = {DURATION: record.seconds} if record.error is None else {}
    if first is not None:
        told[FIRST_TOKEN] = first
    if record.timing and record.timing.answer.tokens:
        span = record.timing.answer
        told[PER_TOKEN] = span.seconds / span.tokens  # however slowly the client reads
    return told


def outcome(status: int) -> str:
    """How a request ended, in few words; `limited` and `gone` are nobody's fault."""
    match status:
        case 200:
            return "ok"
        case 429:
            return "limited"
        case 499:
            return "gone"
        case 504:
            return "timeout"
    return "failed" if status >= 500 else "refused"


class Tells(Protocol):
    """An engine that says how it is."""

    def statistics(self) -> Statistics:
        """How much it has to do."""
        ...


class EngineMetrics:
    """Shows an engine's figures until the engine is gone. To be made inside Ray."""

    def __init__(self, engine: Tells, replica: str) -> None:
        self._made = {series.name: series.make() for series in OF_ENGINES}
        self._labels = {"replica": replica}
        self._engine, self._before = weakref.ref(engine), Statistics()
        Refresh(self._show, engine)

    def _show(self) -> None:
        if engine := self._engine():
            now = engine.statistics()
            for name, value in figures(self._before, now).items():
                self._made[name].set(value, self._labels)
            self._before = now


def figures(before: Statistics, now: Statistics) -> dict[str, float]:
    """The engine's series, from two looks at it."""
    passes = now.passes - before.passes
    values = (
        now.running,
        now.waiting,
        now.adapters,
        now.reserved,
        (now.rows - before.rows) / passes if passes else 0,
        (now.tokens - before.tokens) / passes if passes else 0,
    )
    return {s.name: float(value) for s, value in zip(OF_ENGINES, values, strict=True)}
