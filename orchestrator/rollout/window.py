"""What a gateway has lately seen of each version, in a form that can be judged."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from statistics import fmean
from typing import Any

from orchestrator.answered import Answered
from orchestrator.rollout.spec import GuardSpec

BLAMELESS = frozenset({"unavailable", "engine_stopped", "queue_full"})
"""Failures on our side that no version is to blame for."""
P95 = 0.95


@dataclass(frozen=True)
class Window:
    """Requests to one version."""

    seen: tuple[Answered, ...]

    @property
    def requests(self) -> int:
        """All that count."""
        return len(self.seen)

    @property
    def errors(self) -> Counter[str]:
        """Failures by their code."""
        return Counter(answered.error or "unknown" for answered in self.seen if failed(answered))

    @property
    def error_rate(self) -> float:
        """Failing share; 0 where nothing was seen."""
        return self.errors.total() / max(1, self.requests)

    @property
    def seconds(self) -> Sequence[float]:
        """To the end of each whole answer, ascending."""
        return sorted(answered.seconds for answered in self.seen if not failed(answered))

    @property
    def p95(self) -> float:
        """95th percentile of the seconds; 0 where there is no answer."""
        seconds = self.seconds
        return seconds[math.ceil(P95 * len(seconds)) - 1] if seconds else 0.0

    def slower_than(self, seconds: float) -> int:
        """Whole answers that took longer."""
        return sum(one > seconds for one in self.seconds)

    @property
    def tokens(self) -> float:
        """Mean length of the answers."""
        lengths = [answered.completion_tokens for answered in self.seen if not failed(answered)]
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
    """An observer that keeps the last requests of each version under each name. It is called in
    the event loop and read in other threads: what is read is copied first."""

    def __init__(self, spec: GuardSpec) -> None:
        self._spec = spec
        self._seen: defaultdict[tuple[str | None, str, bool], deque[Answered]] = defaultdict(
            partial(deque, maxlen=spec.window_requests)
        )

    def __call__(self, answered: Answered) -> None:
        """See `orchestrator.answered.Observer`."""
        if counts(answered):
            slim = replace(answered, routing=None, prompt=None, answer=None)
            self._seen[_key(answered)].append(slim)

    def of(self, name: str, version: str, since: datetime, until: datetime) -> Window:
        """Requests that came between the two, and not too long before `until`."""
        return self._window([(name, version, False)], since, until)

    def shadow(self, name: str, version: str) -> Window:
        """What a shadow answered, whenever that was."""
        return Window(tuple(self._seen.get((name, version, True), ())))

    def others(self, name: str, version: str, since: datetime, until: datetime) -> Window:
        """Requests to anything else but shadows, the base included."""
        keys = [key for key in list(self._seen) if key[:2] != (name, version) and not key[2]]
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
        seen = (answered for key in keys for answered in tuple(self._seen.get(key, ())))
        return Window(tuple(one for one in seen if since <= one.at < until))


def counts(answered: Answered) -> bool:
    """Whether it says something about the version: a client's error does not."""
    if answered.error in BLAMELESS:
        return False
    return answered.status < 400 or answered.status >= 500


def failed(answered: Answered) -> bool:
    """Whether the version owes an answer."""
    return answered.status >= 500


def _key(answered: Answered) -> tuple[str | None, str, bool]:
    return answered.name, answered.version, answered.role == "shadow"
