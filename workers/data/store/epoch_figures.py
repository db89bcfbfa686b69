"""What an epoch's batches are like, as a run would make them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.config.train import TrainSpec
from workers.data.batches import Batches
from workers.data.epoch import steps_of_run
from workers.data.packing import batches_of
from workers.data.store.arrow import StoredExamples
from workers.data.store.token_store import EncodedSource

MOST_STEPS = 20_000
"""So many of an epoch's steps are looked at, which takes a second."""
MOST_ROWS = 100_000
"""Of those, where passes are counted by their tokens."""
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LargestPass:
    """The largest forward pass of a run on one worker."""

    rows: int
    length: int
    """Tokens of a row, padding included; of packed rows the mean."""
    scored: int
    """Target tokens of a row, the mean: what logits are made for."""


@dataclass(frozen=True)
class EpochFigures:
    """Of one epoch."""

    steps: int | None
    """None of a stream, whose end nobody knows: the figures are of what was looked at."""
    epochs: float | None
    """That the run's steps make."""
    padding_share: float
    """Of all positions that are computed."""
    positions_per_step: float
    """Tokens and padding of one worker in a step, the mean."""
    largest: LargestPass

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def epoch_figures(train: EncodedSource, spec: TrainSpec) -> EpochFigures:
    """Of a run's first epoch on its most workers."""
    examples, parts = train.examples, train.counts.parts(spec.data)
    batches = batches_of(spec, examples, parts, rank=0, world=spec.parallel.max_workers)
    steps, lengths = batches.steps_per_epoch, examples.lengths
    looked_at = min(steps, MOST_STEPS)
    if spec.pass_limit.tokens:
        looked_at = min(looked_at, max(MOST_ROWS // spec.optimizer.batch_size, 1))
    tokens = positions = most = 0
    widest: Rows = np.zeros(0, np.int64)
    for rows in _passes(batches, spec, looked_at):
        filled = int(lengths[rows].sum())
        padded = filled if spec.data.packing else len(rows) * int(lengths[rows].max())
        tokens, positions = tokens + filled, positions + padded
        if padded > most:
            most, widest = padded, rows
    return EpochFigures(
        steps=None if spec.data.streaming else steps,
        epochs=None if spec.data.streaming else steps_of_run(spec.optimizer, lambda: parts) / steps,
        padding_share=1 - tokens / positions,
        positions_per_step=positions / looked_at / spec.parallel.max_workers,
        largest=_pass(examples, widest, packed=spec.data.packing),
    )


def _passes(batches: Batches, spec: TrainSpec, steps: int) -> Iterator[Rows]:
    """The rows of each forward pass of all workers."""
    for step in range(steps):
        yield from map(np.asarray, batches.passes_of_all(step, spec.pass_limit))


def _pass(examples: StoredExamples, rows: Rows, *, packed: bool) -> LargestPass:
    """As `workers.train.forward` scores it."""
    taken = [examples[int(row)] for row in rows]
    learned = [span for one in taken for span in one.spans if span.weight]
    scored = sum(span.stop - max(span.start, 1) for span in learned)
    length = sum(map(len, taken)) / len(taken) if packed else max(map(len, taken))
    return LargestPass(len(taken), ceil(length), ceil(scored / len(taken)))
