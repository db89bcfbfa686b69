"""How long an engine computes on a request: what its version is to blame for, and nothing else.

Only forward passes count, up to the moment when their logits are there. Waiting for room, drawing
by a schema, a slow reader and the network are the request's own affair or everybody's.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class ComputeSpan(NamedTuple):
    """Some of a request's forward passes."""

    tokens: int = 0
    """Of the request, that passed."""
    seconds: float = 0.0
    passes: int = 0
    shared: int = 0
    """Tokens in those passes, of all requests: a request waits for those beside it, too."""

    @property
    def load(self) -> float:
        """Mean tokens of a pass."""
        return self.shared / max(self.passes, 1)

    @classmethod
    def all(cls, spans: Iterable["ComputeSpan"]) -> "ComputeSpan":
        """Together."""
        sums = [sum(column) for column in zip(*spans, strict=True)]
        return cls(*sums)


AdapterSet = frozenset[str]
"""Slots of the other adapters in a pass: a slow one makes all wait."""


class SharedPasses(NamedTuple):
    """A request's passes beside the same others."""

    others: AdapterSet
    prompt: ComputeSpan = ComputeSpan()
    """Up to the first token. What lay in the cache did not pass, and is not counted."""
    answer: ComputeSpan = ComputeSpan()
    """Each pass gave one more token."""


class Timing(NamedTuple):
    """What was computed of an answer so far, since its engine last began with it."""

    parts: tuple[SharedPasses, ...] = ()

    @property
    def prompt(self) -> ComputeSpan:
        """Whoever was beside it."""
        return ComputeSpan.all(part.prompt for part in self.parts)

    @property
    def answer(self) -> ComputeSpan:
        """Whoever was beside it."""
        return ComputeSpan.all(part.answer for part in self.parts)

    @property
    def seconds(self) -> float:
        """Of all passes."""
        return self.prompt.seconds + self.answer.seconds


@dataclass(eq=False)
class _Sums:
    """A span that grows."""

    tokens: int = 0
    seconds: float = 0.0
    passes: int = 0
    shared: int = 0

    def add(self, tokens: int, seconds: float, shared: int) -> None:
        self.tokens += tokens
        self.seconds += seconds
        self.passes += 1
        self.shared += shared

    def span(self) -> ComputeSpan:
        return ComputeSpan(self.tokens, self.seconds, self.passes, self.shared)


class Timer:
    """Adds up a request's passes. The generation thread writes, others may read."""

    def __init__(self) -> None:
        self._prompt: defaultdict[AdapterSet, _Sums] = defaultdict(_Sums)
        self._answer: defaultdict[AdapterSet, _Sums] = defaultdict(_Sums)
        self._drawn = False

    @property
    def timing(self) -> Timing:
        """So far."""
        both = (self._prompt, self._answer)
        met = {others: None for sums in both for others in tuple(sums)}
        return Timing(
            tuple(
                SharedPasses(one, *(sums.get(one, _Sums()).span() for sums in both)) for one in met
            )
        )

    def passed(self, others: AdapterSet, row: "Passing", seconds: float, shared: int) -> None:
        """It was in one more pass, of `shared` tokens."""
        sums = self._answer if self._drawn else self._prompt
        sums[others].add(row.tokens, seconds, shared)
        self._drawn = self._drawn or row.draws


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
        """Its logits are there, and not only ordered from a GPU. Again: nothing."""
        account(self._passing, time.perf_counter() - self._begun)
        self._passing = ()


def account(passing: Iterable[Passing], seconds: float) -> None:
    """Add a pass that took so long to the timers of all that were in it."""
    rows = tuple(passing)
    shared = sum(row.tokens for row in rows)
    present = {row.slot for row in rows}
    others = {own: frozenset(one for one in present if one and one != own) for own in present}
    for row in rows:
        row.timer.passed(others[row.slot], row, seconds, shared)
