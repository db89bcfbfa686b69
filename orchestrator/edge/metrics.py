"""Metrics of serving for Ray's dashboard and Prometheus, as series `ray_moetune_…`.

Labels are few and bounded: the name, the version and the role of who answered, and how it ended.
No caller, no request, no text.
"""

import logging
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.answered import Answered
from workers.engine.statistics import Statistics

log = logging.getLogger(__name__)
VERSIONS = 64
"""Pairs of name and version with labels of their own; later ones are `other`: what a process has
once shown, it shows for ever."""
REFRESH_SECONDS = 2.0
"""Ray drops a gauge that was not set for two of its reporting intervals (10 s by default)."""
SECONDS = [0.005 * 2**n for n in range(16)]  # 5 ms … 164 s
BY_VERSION = ("name", "version", "role")


@dataclass(frozen=True)
class Series:
    """One series."""

    name: str
    help: str
    kind: Literal["counter", "histogram", "gauge"] = "gauge"
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """What Prometheus knows it as."""
        whole = f"ray_{self.name}"
        match self.kind:
            case "counter":
                return (f"{whole}_total",)
            case "histogram":
                return (f"{whole}_bucket", f"{whole}_sum", f"{whole}_count")
        return (whole,)

    def make(self) -> Any:
        """The series in this process, which must be one of Ray's."""
        from ray.util.metrics import Counter, Gauge, Histogram

        match self.kind:
            case "counter":
                return Counter(self.name, self.help, self.labels)
            case "histogram":
                return Histogram(self.name, self.help, SECONDS, self.labels)
        return Gauge(self.name, self.help, self.labels)


REQUESTS = Series("moetune_requests", "Requests that ended", "counter", (*BY_VERSION, "outcome"))
PROMPT_TOKENS = Series("moetune_prompt_tokens", "Tokens of prompts", "counter", BY_VERSION)
ANSWER_TOKENS = Series("moetune_answer_tokens", "Tokens generated", "counter", BY_VERSION)
DURATION = Series(
    "moetune_request_seconds", "Arrival to end, whole answers", "histogram", BY_VERSION
)
FIRST_TOKEN = Series(
    "moetune_first_token_seconds", "Arrival to first token", "histogram", BY_VERSION
)
PER_TOKEN = Series(
    "moetune_token_seconds", "From one token of an answer to the next", "histogram", BY_VERSION
)
OF_REQUESTS = (REQUESTS, PROMPT_TOKENS, ANSWER_TOKENS, DURATION, FIRST_TOKEN, PER_TOKEN)

REPLICA = ("replica",)
OF_ENGINES = (
    Series("moetune_engine_running", "Requests that are generated for", labels=REPLICA),
    Series("moetune_engine_waiting", "Requests that wait for room in the cache", labels=REPLICA),
    Series("moetune_engine_adapters", "Adapter versions held", labels=REPLICA),
    Series("moetune_engine_cache_reserved", "Share of the cache promised, 0 … 1", labels=REPLICA),
    Series("moetune_engine_batch_requests", "Requests in a forward pass, mean", labels=REPLICA),
    Series("moetune_engine_batch_tokens", "Tokens in a forward pass, mean", labels=REPLICA),
)


class RequestMetrics:
    """An observer of requests. To be made inside Ray."""

    def __init__(self) -> None:
        self._made = {series: series.make() for series in OF_REQUESTS}
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, answered: Answered) -> None:
        """Count and time one request."""
        labels = self._labels(answered)
        self._made[REQUESTS].inc(1, {**labels, "outcome": outcome(answered.status)})
        for series, tokens in (
            (PROMPT_TOKENS, answered.prompt_tokens),
            (ANSWER_TOKENS, answered.completion_tokens),
        ):
            if tokens:
                self._made[series].inc(tokens, labels)
        for series, seconds in times(answered).items():
            self._made[series].observe(seconds, labels)

    def _labels(self, answered: Answered) -> dict[str, str]:
        who = (answered.name or "", answered.version)
        if who not in self._seen and len(self._seen) >= VERSIONS:
            who = ("other", "other")
        self._seen.add(who)
        return dict(zip(BY_VERSION, (*who, answered.role), strict=True))


def times(answered: Answered) -> dict[Series, float]:
    """What a request's times tell: of whole answers only its duration, of all the first token."""
    first = answered.first_token_seconds
    told = {DURATION: answered.seconds} if answered.error is None else {}
    if first is not None:
        told[FIRST_TOKEN] = first
        if answered.completion_tokens > 1:
            told[PER_TOKEN] = (answered.seconds - first) / (answered.completion_tokens - 1)
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
        self._ended = threading.Event()
        weakref.finalize(engine, self._ended.set)
        self._engine = weakref.ref(engine)
        threading.Thread(target=self._refresh, name="engine-metrics", daemon=True).start()

    def _refresh(self) -> None:
        before = Statistics()
        while not self._ended.wait(REFRESH_SECONDS):
            engine = self._engine()
            if engine is None:
                return
            now = engine.statistics()
            del engine
            for name, value in figures(before, now).items():
                self._made[name].set(value, self._labels)
            before = now


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
