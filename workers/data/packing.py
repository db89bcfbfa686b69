"""Rows that follow one another in one row of tensors, without padding: sequence packing.

Which rows make up a step is drawn as without packing, but for their lengths, which play no part.
A step's rows are dealt out by their tokens: over the workers and their forward passes, of which all
have the same number. It depends on the step alone, as the rows do.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil

import numpy as np

from workers.config.parallel import NO_LIMIT, PassLimit
from workers.config.train import TrainSpec
from workers.data.batches import Batch, Batches, collate
from workers.data.epoch import Part
from workers.data.example import Example, Span


@dataclass(frozen=True)
class PackedBatches(Batches):
    """The batches of a run with packing."""

    group: int = 1
    passes: int = 1
    """Forward passes of a step, at least."""

    def passes_of_all(self, step: int, limit: PassLimit = NO_LIMIT) -> list[list[int]]:
        """See Batches: of about as many tokens each."""
        rows = self.indices(step)
        hands = deal(self._tokens(rows), self.world, self.passes, limit.tokens)
        return [[rows[place] for place in hand] for hand in hands]

    def halved(self, step: int, limit: PassLimit) -> PassLimit:
        """See Batches."""
        several = [rows for rows in self.passes_of_all(step, limit) if len(rows) > 1]
        return PassLimit(tokens=max(sum(self._tokens(rows)) for rows in several) // 2)


def batches_of(
    spec: TrainSpec, examples: Sequence[Example], parts: Sequence[Part], rank: int, world: int
) -> Batches:
    """The batches of one of `world` workers of a run, padded or packed."""
    size, seed = spec.optimizer.batch_size, spec.seed
    if not spec.data.packing:
        return Batches(examples, size, seed, rank, world, parts)
    passes = spec.packed_passes(world)
    return PackedBatches(examples, size, seed, rank, world, parts, passes=passes)


def deal(
    lengths: Sequence[int], workers: int, passes: int = 1, tokens: int | None = None
) -> list[list[int]]:
    """Places of rows by forward pass: those of the first on each worker, then of the second, and so
    on. Each pass has about as many tokens on every worker, and at most `tokens`, as long as that
    takes no pass without a row."""
    most = len(lengths) // workers
    if tokens:
        passes = max(passes, ceil(sum(lengths) / (workers * tokens)))
    while True:
        passes = min(passes, most)
        hands = _evenly(lengths, workers * passes)
        if tokens is None or passes == most or hands[0][0] <= tokens:
            return [places for _, places in hands]
        passes += 1


def pack(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Rows one after another. The first token of a row is no target: nothing predicts it."""
    lengths = tuple(map(len, examples))
    spans = [
        Span(start + max(span.start, 1), start + span.stop, span.weight)
        for start, example in zip(accumulate(lengths, initial=0), examples, strict=False)
        for span in example.spans
    ]
    ids = np.concatenate([np.asarray(example.ids, np.int64) for example in examples]).tolist()
    return replace(collate([Example(ids, tuple(spans))], pad_token_id), lengths=lengths)


def _evenly(lengths: Sequence[int], hands: int) -> list[tuple[int, list[int]]]:
    """Tokens and places of so many hands, the fullest first: the longest row that is left goes to
    who has the fewest tokens (Graham's LPT rule)."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    fewest = [(0, number) for number in range(hands)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        total, number = fewest[0]
        dealt[number].append(place)
        heapq.heapreplace(fewest, (total + lengths[place], number))
    fullest = sorted(fewest, key=lambda one: (-one[0], one[1]))
    return [(total, dealt[number]) for total, number in fullest]
