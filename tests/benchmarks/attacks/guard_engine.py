"""An engine in simulated time: continuous batching as ours does it, with a clock of its own.

Requests wait until the cache has room for prompt and answer, are read in pieces that fill up a pass
of at most `BATCH` tokens, and draw a token a pass. A pass costs a constant and something for each
token; the machine under it is sometimes slower, for everybody. What is told of a request is what
the gateway tells of it, timed by the engine's own timers.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from orchestrator.telemetry.request_record import RequestRecord
from workers.engine.timing import Passing, Timer, account

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BATCH, CACHE, ROWS = 512, 8192, 256
PASS_SECONDS, TOKEN_SECONDS = 0.02, 0.0005
SPELL_SECONDS = 10
STATUS = {
    "engine_error": 500,
    "non_finite": 500,
    "invalid_schema": 400,
    "timeout": 504,
    "client_closed_request": 499,
}


def moment(seconds: float) -> datetime:
    """A simulated second."""
    return BEGIN + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Ask:
    """A request, and how it will fare."""

    at: float
    version: str
    role: str
    user: str
    prompt: int
    answer: int
    cached: int = 0
    """Tokens of the prompt that need not be read."""
    n: int = 1
    reading: float = 0.0
    """Seconds that the client takes for each token."""
    leaves: float = math.inf
    """Seconds after which it goes away."""
    limit: float = 600.0
    """Seconds after which it is cut off."""
    error: str | None = None
    """What becomes of it at its first token."""


@dataclass(eq=False)
class Row:
    """One answer to it."""

    ask: Ask
    unread: int
    drawn: int = 0
    timer: Timer = field(default_factory=Timer)


@dataclass(eq=False)
class Running:
    """A request from its arrival to its end."""

    ask: Ask
    rows: list[Row]
    first: float | None = None

    @property
    def size(self) -> int:
        return sum(self.ask.prompt + self.ask.answer for _ in self.rows)

    def read(self, now: float, error: str | None) -> tuple[float, str | None]:
        """When its client has read all of it, and what came between."""
        ask = self.ask
        end = now + ask.reading * sum(row.drawn for row in self.rows)
        longest = ask.at + min(ask.limit, ask.leaves)
        return (end, error) if end <= longest or error else (max(now, longest), _late(ask))

    def told(self, now: float, error: str | None) -> RequestRecord:
        ask, drawn = self.ask, sum(row.drawn for row in self.rows)
        timing = self.rows[0].timer.timing
        return RequestRecord(
            at=moment(ask.at),
            came=moment(ask.at),
            request="r",
            name="home",
            version=ask.version,
            caller="k-1",
            status=STATUS[error] if error else 200,
            error=error,
            prompt_tokens=ask.prompt,
            completion_tokens=drawn,
            seconds=now - ask.at,
            first_token_seconds=self.first and self.first - ask.at,
            role=ask.role,
            timing=timing if timing.parts else None,
            user=ask.user,
        )


class Engine:
    """Answers requests in the order of their arrival."""

    def __init__(self, draw: random.Random, slow: dict[str, float]) -> None:
        """`slow` is how many times as long a version's own part of a pass takes."""
        self._draw, self._slow = draw, slow
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._spell, self._spell_ends = 1.0, 0.0

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[float, RequestRecord]]:
        """What the gateway hears, and when."""
        now, coming, numbers = 0.0, deque(asks), count()
        heard: list[tuple[float, int, RequestRecord]] = []
        while coming or self._waiting or self._running:
            if not self._waiting and not self._running:
                now = max(now, coming[0].at)
            while coming and coming[0].at <= now:
                ask = coming.popleft()
                rows = [Row(ask, ask.prompt - ask.cached) for _ in range(ask.n)]
                self._waiting.append(Running(ask, rows))
            self._admit()
            now += self._pass(now)
            for one, error in self._ended(now):
                at, why = one.read(now, error)
                heapq.heappush(heard, (at, next(numbers), one.told(at, why)))
            while heard and heard[0][0] <= now:
                at, _, record = heapq.heappop(heard)
                yield at, record
        while heard:
            at, _, record = heapq.heappop(heard)
            yield at, record

    def _admit(self) -> None:
        used = sum(one.size for one in self._running)
        while self._waiting and (not self._running or used + self._waiting[0].size <= CACHE):
            one = self._waiting.popleft()
            self._running.append(one)
            used += one.size

    def _pass(self, now: float) -> float:
        """One forward pass; returns its seconds."""
        rows = [(one, row) for one in self._running for row in one.rows if _unfinished(row)][:ROWS]
        left = BATCH - sum(not row.unread for _, row in rows)
        parts: list[tuple[Running, Row, int]] = []
        for one, row in rows:
            tokens = min(row.unread, max(left, 0)) if row.unread else 1
            left -= tokens if row.unread else 0
            if tokens:
                parts.append((one, row, tokens))
        seconds = self._seconds(now, [(row.ask.version, tokens) for _, row, tokens in parts])
        for one, row, tokens in parts:
            row.unread -= min(row.unread, tokens)
            if not row.unread:
                row.drawn += 1
                one.first = one.first or now + seconds
        passing = (Passing(r.timer, r.ask.version, tokens, not r.unread) for _, r, tokens in parts)
        account(passing, seconds)
        return seconds

    def _seconds(self, now: float, parts: list[tuple[str, int]]) -> float:
        if now >= self._spell_ends:
            self._spell_ends = now + self._draw.expovariate(1 / SPELL_SECONDS)
            self._spell = self._draw.lognormvariate(0, 0.25)
        cost = PASS_SECONDS + TOKEN_SECONDS * sum(tokens for _, tokens in parts)
        for version in {version for version, _ in parts}:
            own = sum(tokens for one, tokens in parts if one == version)
            cost += (self._slow.get(version, 1.0) - 1) * (PASS_SECONDS + TOKEN_SECONDS * own)
        return cost * self._spell * self._draw.lognormvariate(0, 0.15)

    def _ended(self, now: float) -> Iterator[tuple[Running, str | None]]:
        for crowd in (self._running, self._waiting):
            for one in list(crowd):
                ask = one.ask
                if now - ask.at > min(ask.limit, ask.leaves):
                    error: str | None = _late(ask)
                elif one.first and ask.error:
                    error = ask.error
                elif any(map(_unfinished, one.rows)):
                    continue
                else:
                    error = None
                crowd.remove(one)
                yield one, error


def _unfinished(row: Row) -> bool:
    return row.drawn < row.ask.answer


def _late(ask: Ask) -> str:
    return "timeout" if ask.limit <= ask.leaves else "client_closed_request"
