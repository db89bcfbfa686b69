"""Which rows come in an epoch, where they are of several sources with weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Part:
    """The rows of one source: they follow one another."""

    rows: int
    weight: float = 1.0
    """How often each of them comes in an epoch."""

    @property
    def whole(self) -> int:
        """How often all of them come."""
        return int(self.weight)

    @property
    def rest(self) -> int:
        """How many of them come once more; at least one row comes in each epoch."""
        least = 0 if self.whole or not self.rows else 1
        return max(least, round((self.weight - self.whole) * self.rows))

    def drawn(self, epoch: int, seed: str) -> list[int]:
        """The rows of an epoch. Those that come once more go round in one order, so that in the
        long run every row comes equally often."""
        rows = list(range(self.rows)) * self.whole
        if self.rest:
            order = Random(seed).sample(range(self.rows), self.rows)  # noqa: S311 (an order)
            first = epoch * self.rest
            rows += [order[(first + at) % self.rows] for at in range(self.rest)]
        return rows


def rows_of_an_epoch(parts: Sequence[Part]) -> int:
    """How many there are; the same for every epoch."""
    return sum(part.rows * part.whole + part.rest for part in parts)


def drawn(parts: Sequence[Part], epoch: int, seed: int) -> list[int]:
    """The rows of an epoch, source after source; a row that comes twice is there twice."""
    rows, before = list[int](), 0
    for at, part in enumerate(parts):
        rows += [before + row for row in part.drawn(epoch, f"{seed}/source {at}")]
        before += part.rows
    return rows
