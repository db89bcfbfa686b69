"""What a gateway has lately seen of each version, in a form that can be judged."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from statistics import fmean
from typing import Any

from orchestrator.config.rollout import GuardSpec
from orchestrator.telemetry.request_record import RequestRecord

FAULTS = frozenset({"engine_error", "non_finite"})
"""Codes of failures that are the version's own. All others are the request's (a schema, a limit, a
client that left, an answer that was too long for its time) or ours (queues, lost replicas), and are
held neither against a version nor for it. What is merely slow shows in what was computed."""
P95 = 0.95


@dataclass(frozen=True)
class Window:
    """Requests that were routed to one version, or its answers as a shadow."""

    seen: tuple[RequestRecord, ...]
    """Those that count, and others that at least say how long was computed on them."""

    @property
    def requests(self) -> int:
        """All that count."""
        return sum(map(counts, self.seen))

    @property
    def errors(self) -> Counter[str]:
        """Failures by their code."""
        return Counter(one.error for one in self.seen if one.error and failed(one))

    @property
    def error_rate(self) -> float:
        """Failing share; 0 where nothing was seen."""
        return self.errors.total() / max(1, self.requests)

    @property
    def answers(self) -> Sequence[RequestRecord]:
        """That are whole."""
        return [record for record in self.seen if record.error is None]

    @property
    def seconds(self) -> Sequence[float]:
        """Computed on each whole answer, ascending."""
        return sorted(one.timing.seconds for one in self.answers if one.timing)

    @property
    def p95(self) -> float:
        """95th percentile of these; 0 where there is no answer."""
        seconds = self.seconds
        return seconds[math.ceil(P95 * len(seconds)) - 1] if seconds else 0.0

    @property
    def tokens(self) -> float:
        """Mean length of the answers."""
        lengths = [record.completion_tokens for record in self.answers]
        return fmean(lengths) if lengths else 0.0

    def figures(self) -> dict[str, Any]:
        """For an event's evidence."""
        return {
            "requests": self.requests,
            "errors": dict(self.errors),
            "error_rate": round(self.error_rate, 4),
            "p95_seconds": round(self.p95, 4),
        }


class Windows:
    """An observer that keeps the last requests of each version under each name, but for those that
    have pinned it: who chooses a version says nothing of the users. It is called in the event loop
    and read in other threads: what is read is copied first. All times are by
    `orchestrator.telemetry.request_record.steady`."""

    def __init__(self, spec: GuardSpec) -> None:
        self._spec = spec
        self._seen: defaultdict[tuple[str | None, str, bool], deque[RequestRecord]] = defaultdict(
            partial(deque, maxlen=spec.window_requests)
        )

    def __call__(self, record: RequestRecord) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        if record.role != "pinned" and (counts(record) or record.timing):
            slim = replace(record, routing=None, prompt=None, answer=None)
            self._seen[_key(record)].append(slim)

    def of(self, name: str, version: str, since: datetime, until: datetime) -> Window:
        """Requests routed to it that came between the two, and not too long before `until`."""
        return self._window([(name, version, False)], since, until)

    def shadow(self, name: str, version: str) -> Window:
        """What a shadow answered, whenever that was."""
        return Window(tuple(self._seen.get((name, version, True), ())))

    def others(self, name: str, version: str, since: datetime, until: datetime) -> Window:
        """Requests routed to anything else, or to the base by its own id."""
        keys = [key for key in list(self._seen) if key[:2] != (name, version) and not key[2]]
        return self._window(keys, since, until)

    def elsewhere(self, name: str, since: datetime, until: datetime) -> Window:
        """Requests routed by other names, or to the base by its own id."""
        keys = [key for key in list(self._seen) if key[0] != name and not key[2]]
        return self._window(keys, since, until)

    def forget(self, kept: Iterable[tuple[str, str]]) -> None:
        """Drop the versions under names that are not among these."""
        names = set(kept)
        for key in [key for key in list(self._seen) if key[0] and key[:2] not in names]:
            self._seen.pop(key, None)

    def _window(
        self, keys: Iterable[tuple[str | None, str, bool]], since: datetime, until: datetime
    ) -> Window:
        since = max(since, until - timedelta(seconds=self._spec.window_seconds))
        seen = (record for key in keys for record in tuple(self._seen.get(key, ())))
        return Window(tuple(one for one in seen if since <= one.came < until))


def counts(record: RequestRecord) -> bool:
    """Whether the version has answered as it should, or has failed to."""
    return record.error is None or failed(record)


def failed(record: RequestRecord) -> bool:
    """Whether the version is to blame that there is no answer."""
    return record.error in FAULTS


def _key(record: RequestRecord) -> tuple[str | None, str, bool]:
    return record.name, record.version, record.role == "shadow"
