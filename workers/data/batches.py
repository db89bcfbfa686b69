"""Which rows make up a step, and their tensors.

The batch of a step depends on rows, batch size, seed and step alone. So the data position of a
run is its step, a resumed run goes on exactly, and two workers share the very rows of one.
Tensor suffixes: B rows, S positions.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

import numpy as np
import torch
from torch import Tensor

from workers.config.parallel import NO_LIMIT, PassLimit
from workers.data.epoch import Numbers, Part, drawn, shuffled, steps_of_an_epoch
from workers.data.example import Example
from workers.data.passes import fewest_passes, in_passes
from workers.data.store.arrow import StoredExamples
from workers.losses.cross_entropy import IGNORED

_GROUP = 32
"""Batches that are sorted by length together: little padding, and still a random order."""


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right; or packed: one after another in one row."""

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    """1 on real tokens, 0 on padding."""
    labels_BS: Tensor
    """Token ids of the target, at their own positions (not shifted); IGNORED elsewhere."""

    weights_BS: Tensor | None = None
    """What each target token counts for; None where all count alike."""
    lengths: tuple[int, ...] = ()
    """Of the rows that follow one another; none where the batch is not packed."""

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.lengths) or len(self.input_ids_BS)

    @property
    def counted(self) -> float:
        """What the loss counts in it: target tokens, or the sum of their weights."""
        real_BS = self.labels_BS[:, 1:] != IGNORED
        if self.weights_BS is None:
            return int(real_BS.sum())
        return float(self.weights_BS[:, 1:][real_BS].double().sum())

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        tensors = (self.input_ids_BS, self.attention_mask_BS, self.labels_BS)
        ids_BS, mask_BS, labels_BS = (one.to(device, non_blocking=True) for one in tensors)
        weights_BS = self.weights_BS
        if weights_BS is not None:
            weights_BS = weights_BS.to(device, non_blocking=True)
        return Batch(ids_BS, mask_BS, labels_BS, weights_BS, self.lengths)


@dataclass(frozen=True)
class Batches:
    """The batches of a run: each epoch a new order, seeded; rows of like length together.

    Every step has `batch_size` rows over all workers, and every epoch as many steps. Where rows do
    not fill them, rows of the same epoch come a second time, so that none is left out.
    """

    examples: Sequence[Example]
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    parts: Sequence[Part] = ()
    """How many of the examples are of each source, and how often they come; none: all come once."""
    group: int = _GROUP
    """So many batches are sorted by length together; 1: what comes together is by chance."""
    _epochs: dict[int, Numbers] = field(default_factory=dict, init=False, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row comes at least once; with weights, as often as they say."""
        return steps_of_an_epoch(self._parts, self.batch_size)

    @property
    def mean_length(self) -> float:
        """Tokens of a row, on average."""
        return float(self._lengths.mean())

    def epoch(self, step: int) -> float:
        """Epochs that so many steps make."""
        return step / self.steps_per_epoch

    def indices(self, step: int) -> list[int]:
        """Rows of a step (from 0) over all workers, the shortest first."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._order(epoch)
        rows: list[int] = self._epochs[epoch][place].tolist()
        return rows

    def mine(self, step: int, limit: PassLimit = NO_LIMIT) -> list[int]:
        """This worker's rows of a step; all workers have rows of about the same lengths."""
        return [row for rows in self._passes(step, limit) for row in rows]

    def share(self, step: int) -> list[Example]:
        """This worker's examples of a step."""
        return [self.examples[index] for index in self.mine(step)]

    def passes_of_all(self, step: int, limit: PassLimit = NO_LIMIT) -> list[list[int]]:
        """Rows of the first forward pass of every worker, then of the second, and so on."""
        rows = self.indices(step)
        shares = [rows[rank :: self.world] for rank in range(self.world)]
        if limit.tokens:
            return self._by_tokens(shares, limit.tokens)
        size = limit.rows or len(shares[0])
        return [one[at : at + size] for at in range(0, len(shares[0]), size) for one in shares]

    def micro_batches(self, step: int, limit: PassLimit = NO_LIMIT) -> list[list[Example]]:
        """This worker's share in forward passes; every worker has as many."""
        return [[self.examples[row] for row in rows] for rows in self._passes(step, limit)]

    def halved(self, step: int, limit: PassLimit) -> PassLimit:
        """Half of the step's largest pass that can be halved; the same on every worker."""
        several = [rows for rows in self.passes_of_all(step, limit) if len(rows) > 1]
        halves = [limit.half_of(len(rows), max(self._tokens(rows))) for rows in several]
        return max(halves, key=lambda one: one.tokens or one.rows or 0)

    def _by_tokens(self, shares: Sequence[list[int]], tokens: int) -> list[list[int]]:
        """Each worker's share in passes of at most so many tokens: all make as many passes, though
        the rows of one might fit into fewer."""
        lengths = [self._tokens(share) for share in shares]
        passes = max(fewest_passes(one, tokens) for one in lengths)
        parts = [in_passes(one, tokens, passes) for one in lengths]
        return [
            share[parts[rank][number]]
            for number in range(passes)
            for rank, share in enumerate(shares)
        ]

    def _tokens(self, rows: Sequence[int]) -> list[int]:
        return [int(self._lengths[row]) for row in rows]

    def _passes(self, step: int, limit: PassLimit) -> list[list[int]]:
        return self.passes_of_all(step, limit)[self.rank :: self.world]

    @property
    def _parts(self) -> Sequence[Part]:
        return self.parts or (Part(len(self.examples)),)

    @cached_property
    def _lengths(self) -> Numbers:
        if isinstance(self.examples, StoredExamples):
            return self.examples.lengths
        return np.fromiter(map(len, self.examples), np.uint32)

    def _order(self, epoch: int) -> Numbers:
        """The rows of each step of an epoch."""
        random = Random(f"{self.seed}/{epoch}")  # noqa: S311 (an order, not a secret)
        rows = drawn(self._parts, epoch, self.seed)
        order = rows[shuffled(random, len(rows))]
        while missing := self.steps_per_epoch * self.batch_size - len(order):
            order = np.concatenate([order, order[:missing]])
        for start in range(0, len(order), self.batch_size * self.group):
            group = order[start : start + self.batch_size * self.group]
            group[:] = group[np.argsort(self._lengths[group], kind="stable")]
        steps = array("I", range(len(order) // self.batch_size))
        random.shuffle(steps)
        rows_of_steps: Numbers = order.reshape(-1, self.batch_size)[np.asarray(steps)]
        return rows_of_steps


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad examples on the right, for training and for log-likelihoods."""
    shape = (len(examples), max(map(len, examples)))
    ids_BS = torch.full(shape, pad_token_id)
    mask_BS = torch.zeros(shape, dtype=torch.long)
    labels_BS = torch.full(shape, IGNORED)
    weighs = any(span.weight not in (0, 1) for example in examples for span in example.spans)
    weights_BS = torch.zeros(shape) if weighs else None
    for row, example in enumerate(examples):
        ids_BS[row, : len(example)] = torch.tensor(example.ids)
        mask_BS[row, : len(example)] = 1
        for span in filter(lambda one: one.weight, example.spans):
            labels_BS[row, span.start : span.stop] = ids_BS[row, span.start : span.stop]
            if weights_BS is not None:
                weights_BS[row, span.start : span.stop] = span.weight
    return Batch(ids_BS, mask_BS, labels_BS, weights_BS)


def collate_prompts(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left, for generation: input ids and attention mask, both [B, S]."""
    shape = (len(prompts), max(map(len, prompts)))
    ids_BS = torch.full(shape, pad_token_id)
    mask_BS = torch.zeros(shape, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BS[row, shape[1] - len(prompt) :] = torch.tensor(prompt)
        mask_BS[row, shape[1] - len(prompt) :] = 1
    return ids_BS, mask_BS
