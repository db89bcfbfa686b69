"""How long an engine computes on a request: what its version is to blame for, and nothing else.

Only forward passes count, up to the moment when their logits are there. Waiting for room, drawing
by a schema, a slow reader and the network are the request's own affair or everybody's.
"""

import time
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple


class Span(NamedTuple):
    """Some of a request's forward passes."""

    tokens: int = 0
    """Of the request, that passed."""
    seconds: float = 0.0
    passes: int = 0
    shared: int = 0
    """Tokens in those passes, of all requests: who has company waits for it too."""

    @property
    def load(self) -> float:
        """Mean tokens of a pass."""
        return self.shared / max(self.passes, 1)

    def plus(self, other: "Span") -> "Span":
        """Of both."""
        return Span(
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.passes + other.passes,
            self.shared + other.shared,
        )


Company = frozenset[str]
"""Slots of the other adapters in a pass: a slow one makes all wait."""


class Part(NamedTuple):
    """A request's passes in the same company."""

    company: Company
    prompt: Span = Span()
    """Up to the first token. What lay in the cache did not pass, and is not counted."""
    answer: Span = Span()
    """Each pass gave one more token."""


class Timing(NamedTuple):
    """What was computed of an answer so far, since its engine last began with it."""

    parts: tuple[Part, ...] = ()

    @property
    def prompt(self) -> Span:
        """In any company."""
        return reduce(Span.plus, (part.prompt for part in self.parts), Span())

    @property
    def answer(self) -> Span:
        """In any company."""
        return reduce(Span.plus, (part.answer for part in self.parts), Span())

    @property
    def seconds(self) -> float:
        """Of all passes."""
        return self.prompt.seconds + self.answer.seconds


class Timer:
    """Adds up a request's passes. The generation thread writes, others may read."""

    def __init__(self) -> None:
        self._parts: dict[Company, Part] = {}
        self._drawn = False

    @property
    def timing(self) -> Timing:
        """So far."""
        return Timing(tuple(self._parts.values()))

    def passed(self, company: Company, span: Span, draws: bool) -> None:
        """It was in one more pass, which gave it a token if it `draws`."""
        known = self._parts.get(company, Part(company))
        if self._drawn:
            self._parts[company] = known._replace(answer=known.answer.plus(span))
        else:
            self._parts[company] = known._replace(prompt=known.prompt.plus(span))
        self._drawn = self._drawn or draws


class Passing(NamedTuple):
    """A request's part in a pass."""

    timer: Timer
    slot: str | None
    tokens: int
    draws: bool


class PassClock:
    """Times forward passes, one after another."""

    def __init__(self) -> None:
        self._passing: tuple[Passing, ...] = ()
        self._begun = 0.0

    def start(self, passing: Iterable[Passing]) -> None:
        """A pass begins."""
        self._passing = tuple(passing)
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """Its logits are there, and not only ordered from a GPU."""
        account(self._passing, time.perf_counter() - self._begun)
        self._passing = ()


def account(passing: Iterable[Passing], seconds: float) -> None:
    """Add a pass that took so long to the timers of all that were in it."""
    rows = tuple(passing)
    shared = sum(row.tokens for row in rows)
    present = {row.slot for row in rows}
    company = {own: frozenset(one for one in present if one and one != own) for own in present}
    for row in rows:
        span = Span(row.tokens, seconds, 1, shared)
        row.timer.passed(company[row.slot], span, row.draws)
