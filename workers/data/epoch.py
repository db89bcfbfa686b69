"""Which rows come in an epoch, where they are of several sources with weights.

Numbers of rows are arrays: a list of Python's integers takes nine times as much.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint32]


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

    def drawn(self, epoch: int, seed: str) -> Numbers:
        """The rows of an epoch. Those that come once more go round in one order, so that in the
        long run every row comes equally often."""
        rows = np.tile(np.arange(self.rows, dtype=np.uint32), self.whole)
        if not self.rest:
            return rows
        order = shuffled(Random(seed), self.rows)  # noqa: S311 (an order)
        places = np.arange(epoch * self.rest, (epoch + 1) * self.rest) % self.rows
        return np.concatenate([rows, order[places]])


def rows_of_an_epoch(parts: Sequence[Part]) -> int:
    """How many there are; the same for every epoch."""
    return sum(part.rows * part.whole + part.rest for part in parts)


def drawn(parts: Sequence[Part], epoch: int, seed: int) -> Numbers:
    """The rows of an epoch, source after source; a row that comes twice is there twice."""
    rows, before = [np.zeros(0, np.uint32)], 0
    for at, part in enumerate(parts):
        rows.append(part.drawn(epoch, f"{seed}/source {at}") + np.uint32(before))
        before += part.rows
    return np.concatenate(rows)


def shuffled(random: Random, count: int) -> Numbers:
    """`random.sample(range(count), count)`, without its list of integers, and as quick."""
    numbers, bits = array("I", range(count)), random.getrandbits
    for last in range(count - 1, -1, -1):
        width = (last + 1).bit_length()
        drawn = bits(width)
        while drawn > last:
            drawn = bits(width)
        numbers[drawn], numbers[last] = numbers[last], numbers[drawn]
    return np.frombuffer(numbers, np.uint32)[::-1] if count else np.zeros(0, np.uint32)
