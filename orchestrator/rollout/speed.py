"""Whether a version computes more slowly than another does: like work, in like company, at about
the same time.

A version is slow by what its forward passes take (`workers.engine.timing`). These also take longer
where prompts are longer, where more is asked at once, and where the machine is busy; so each piece
of work is held only against such as is alike in all of that. What has no like says nothing: a user
with other habits, say, who is the only one on a side.

Shapes: N pieces of work, M pieces to compare with, S sizes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from orchestrator.answered import Answered
from workers.engine.timing import Span

Array = NDArray[np.float64]
ALIKE = 0.5
"""Powers of two that two sizes may be apart."""
NEIGHBOURS = 9
"""Pieces of like work, the nearest in time, whose median is the measure."""


@dataclass(frozen=True)
class Work:
    """What one version did of one kind."""

    at_N: Array
    """When, in seconds."""
    size_NS: Array
    """Logarithms to base 2 of what makes it take longer."""
    pace_N: Array
    """Seconds for a token."""

    def over(self, other: "Work") -> Array:
        """How many times the other's each pace is; only of work that the other has enough of the
        like of."""
        if not len(self.at_N) or not len(other.at_N):
            return np.zeros(0)
        apart_NMS = np.abs(self.size_NS[:, None] - other.size_NS[None])
        alike_NM = (apart_NMS <= ALIKE).all(-1)
        known_N = alike_NM.sum(1) >= NEIGHBOURS
        if not known_N.any():
            return np.zeros(0)
        away_NM = np.where(alike_NM, np.abs(self.at_N[:, None] - other.at_N[None]), np.inf)
        near_NK = np.argpartition(away_NM[known_N], NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        typical_N: Array = np.median(other.pace_N[near_NK], axis=1)
        ratio_N: Array = self.pace_N[known_N] / typical_N
        return ratio_N


def reading(seen: Iterable[Answered]) -> Work:
    """Prompts, up to the first token. What the cache held was not read, but is looked at."""
    return _work(
        (one.at, one.timing.prompt, (one.timing.prompt.tokens, one.prompt_tokens))
        for one in seen
        if one.timing
    )


def writing(seen: Iterable[Answered]) -> Work:
    """Answers, from the first token on."""
    return _work(
        (one.at, one.timing.answer, (one.prompt_tokens + one.timing.answer.tokens / 2,))
        for one in seen
        if one.timing
    )


KINDS: Mapping[str, Callable[[Iterable[Answered]], Work]] = {
    "first token": reading,
    "further tokens": writing,
}
"""What is asked for before an answer begins, and while it goes on."""


def _work(pieces: Iterable[tuple[datetime, Span, tuple[float, ...]]]) -> Work:
    """Those that tell something, with their company as one more size."""
    told = [piece for piece in pieces if piece[1].tokens and piece[1].seconds > 0]
    sizes = [(*sizes, span.load) for _, span, sizes in told]
    return Work(
        np.array([at.timestamp() for at, _, _ in told]),
        np.log2(np.array(sizes, dtype=np.float64)),
        np.array([span.seconds / span.tokens for _, span, _ in told]),
    )
