"""How long an engine computes on a request: what its version is to blame for, and nothing else.

Only forward passes count, up to the moment when their logits are there. Waiting for room, drawing
by a schema, a slow reader and the network are the request's own affair or everybody's.
"""

import time
from collections.abc import Iterable
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

    def plus(self, tokens: int, seconds: float, shared: int) -> "Span":
        """With one more pass."""
        return Span(
            self.tokens + tokens, self.seconds + seconds, self.passes + 1, self.shared + shared
        )


class Timing(NamedTuple):
    """What was computed of an answer so far, since its engine last began with it."""

    prompt: Span = Span()
    """Up to the first token. What lay in the cache did not pass, and is not counted."""
    answer: Span = Span()
    """Each pass gave one more token."""

    @property
    def seconds(self) -> float:
        """Of all passes."""
        return self.prompt.seconds + self.answer.seconds


class Timer:
    """Adds up a request's passes. The generation thread writes, others may read."""

    def __init__(self) -> None:
        self.timing = Timing()
        self._drawn = False

    def passed(self, tokens: int, draws: bool, seconds: float, shared: int) -> None:
        """`tokens` of it were in a pass of `shared`, which gave it a token if it `draws`."""
        prompt, answer = self.timing
        if self._drawn:
            self.timing = Timing(prompt, answer.plus(tokens, seconds, shared))
        else:
            self.timing = Timing(prompt.plus(tokens, seconds, shared), answer)
        self._drawn = self._drawn or draws


Passing = tuple[Timer, int, bool]
"""A request's timer, its tokens in a pass, and whether it draws one."""


class PassClock:
    """Times forward passes, one after another."""

    def __init__(self) -> None:
        self._passing: tuple[Passing, ...] = ()
        self._shared, self._begun = 0, 0.0

    def start(self, passing: Iterable[Passing], shared: int) -> None:
        """A pass of `shared` tokens begins."""
        self._passing, self._shared = tuple(passing), shared
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """Its logits are there, and not only ordered from a GPU."""
        seconds = time.perf_counter() - self._begun
        for timer, tokens, draws in self._passing:
            timer.passed(tokens, draws, seconds, self._shared)
        self._passing = ()
