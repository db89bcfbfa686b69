"""Which rows come in an epoch, where they are of several sources with weights, and how many steps
a run makes of epochs.

Numbers of rows are arrays: a list of Python's integers takes nine times as much.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from random import Random

import numpy as np
from numpy.typing import NDArray

from workers.config.base import InputError
from workers.config.train import OptimizerSpec, TrainSpec

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
    def most(self) -> int:
        """Rows in an epoch, at most."""
        return self.rows * self.whole + ceil(self._rest)

    @property
    def _rest(self) -> Fraction:
        """How many of them come once more, on average: 0.5 of 5 rows are 2 and 3 by turns."""
        return (Fraction(str(self.weight)) - self.whole) * self.rows

    def drawn(self, epoch: int, seed: str) -> Numbers:
        """The rows of an epoch. Those that come once more go round in one order, so that in the
        long run every row comes as often as the weight says."""
        rows = np.tile(np.arange(self.rows, dtype=np.uint32), self.whole)
        first, last = floor(epoch * self._rest), floor((epoch + 1) * self._rest)
        return np.concatenate([rows, self._once_more(first, last, seed)])

    def _once_more(self, first: int, last: int, seed: str) -> Numbers:
        if first == last:
            return np.zeros(0, np.uint32)
        order = shuffled(Random(seed), self.rows)  # noqa: S311 (an order)
        taken: Numbers = order[np.arange(first, last) % self.rows]
        return taken

    def one(self, epoch: int, seed: str) -> Numbers:
        """A row, for an epoch in which no source has one; another one in the next."""
        return self._once_more(epoch, epoch + bool(self.rows), seed)


def rows_of_an_epoch(parts: Sequence[Part]) -> int:
    """How many there are at most; the same for every epoch."""
    return sum(part.most for part in parts)


def steps_of_an_epoch(parts: Sequence[Part], batch_size: int) -> int:
    """Steps in which every row comes at least once; with weights, as often as they say."""
    return ceil(rows_of_an_epoch(parts) / batch_size)


def steps_of_run(optimizer: OptimizerSpec, parts: Callable[[], Sequence[Part]]) -> int:
    """Steps that a run makes of its training rows, which are asked for only where it says epochs:
    a stream's are not counted. InputError where its warm-up is longer."""
    if optimizer.epochs is None:
        assert optimizer.steps is not None, "the specification has one of them"
        return optimizer.steps
    # As it is written: 0.1 of 30 steps are 3, but ceil(0.1 * 30) is 4.
    epochs = Fraction(str(optimizer.epochs))
    steps = ceil(epochs * steps_of_an_epoch(parts(), optimizer.batch_size))
    if optimizer.warmup_steps >= steps:
        raise InputError(
            f"optimizer.warmup_steps is {optimizer.warmup_steps}, but must be below the steps of "
            f"the run: optimizer.epochs {optimizer.epochs:g} makes {steps} of these rows"
        )
    return steps


def in_steps(spec: TrainSpec, steps: int) -> TrainSpec:
    """The specification for who computes: so many steps, whichever way it says its length."""
    length = {"steps": steps, "epochs": None}
    return spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update=length)})


def drawn(parts: Sequence[Part], epoch: int, seed: int) -> Numbers:
    """The rows of an epoch, source after source; a row that comes twice is there twice."""
    rows = _of_all(parts, lambda part, own: part.drawn(epoch, own), seed)
    return rows if rows.size else _of_all(parts, lambda part, own: part.one(epoch, own), seed)


def _of_all(parts: Sequence[Part], draw: Callable[[Part, str], Numbers], seed: int) -> Numbers:
    rows, before = [np.zeros(0, np.uint32)], 0
    for at, part in enumerate(parts):
        rows.append(draw(part, f"{seed}/source {at}") + np.uint32(before))
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
