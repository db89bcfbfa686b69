"""The series of serving: `ray_moetune_…` in Ray's dashboard and Prometheus.

Labels are few and bounded: the name, the version and the role of who answered, and how it ended.
No caller, no request, no text.
"""

from dataclasses import dataclass
from typing import Any, Literal

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
    "moetune_token_seconds", "Computed for each further token of an answer", "histogram", BY_VERSION
)
WRONG_KEYS = Series("moetune_wrong_keys", "Requests whose key opens nothing", "counter")
OF_REQUESTS = (REQUESTS, PROMPT_TOKENS, ANSWER_TOKENS, DURATION, FIRST_TOKEN, PER_TOKEN)

REPLICA = ("replica",)
OF_ENGINES = (
    Series("moetune_engine_running", "Requests that are generated for", labels=REPLICA),
    Series("moetune_engine_waiting", "Requests that wait for room in the cache", labels=REPLICA),
    Series("moetune_engine_adapters", "Adapter versions held", labels=REPLICA),
    Series("moetune_engine_cache_reserved", "Share of the cache promised, 0 to 1", labels=REPLICA),
    Series("moetune_engine_batch_requests", "Requests in a forward pass, mean", labels=REPLICA),
    Series("moetune_engine_batch_tokens", "Tokens in a forward pass, mean", labels=REPLICA),
)
