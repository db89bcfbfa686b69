"""Rows of several runs as one batch.

Tensor suffixes: B rows, S positions, F all positions of all rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from workers.data.batches import Batch
from workers.losses.cross_entropy import IGNORED

NOBODY = -1


class JointBatch(NamedTuple):
    """Rows of several runs, one run's after another's. A run sees as many positions as alone."""

    batch: Batch
    part_F: Tensor
    """Whose each position is, by the runs' order; `NOBODY` where another run's rows are longer."""
    sequence_F: Tensor
    """The number of each position's sequence."""
    real_F: Tensor
    """1 on real tokens, 0 on padding."""


def in_one_row(batches: Sequence[Batch]) -> JointBatch:
    """All rows one after another, as packed ones: nobody's rows are filled up to another's length.

    What fills rows up to the longest of their own run stays, and is attended to like tokens: as
    alone, where no mask hides it either.
    """
    packed = [_as_packed(one) for one in batches]
    lengths = tuple(length for one in packed for length in one.lengths)
    real_1F = _side_by_side([one.attention_mask_BS for one in packed])
    batch = Batch(
        _side_by_side([one.input_ids_BS for one in packed]),
        torch.ones_like(real_1F),
        _side_by_side([one.labels_BS for one in packed]),
        _side_by_side(weights) if (weights := _weights(packed)) else None,
        lengths,
    )
    parts = [torch.full_like(one.input_ids_BS, number) for number, one in enumerate(packed)]
    sequence_F = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return JointBatch(batch, _side_by_side(parts).flatten(), sequence_F, real_1F.flatten())


def filled_up(batches: Sequence[Batch], pad_token_id: int) -> JointBatch:
    """All rows padded to the longest of any run, for a base that takes no packed ones."""
    longest = max(one.input_ids_BS.shape[1] for one in batches)

    def lay(tensors: Sequence[Tensor], value: int) -> Tensor:
        filled = [functional.pad(one, (0, longest - one.shape[1]), value=value) for one in tensors]
        return torch.cat(filled)

    batch = Batch(
        lay([one.input_ids_BS for one in batches], pad_token_id),
        lay([one.attention_mask_BS for one in batches], 0),
        lay([one.labels_BS for one in batches], IGNORED),
        lay(weights, 0) if (weights := _weights(batches)) else None,
    )
    parts = [torch.full_like(one.input_ids_BS, number) for number, one in enumerate(batches)]
    sequence_F = torch.arange(batch.rows).repeat_interleave(longest)
    real_F = batch.attention_mask_BS.flatten()
    return JointBatch(batch, lay(parts, NOBODY).flatten(), sequence_F, real_F)


def _as_packed(batch: Batch) -> Batch:
    """Padded rows one after another, with what fills them up. The first token of a row is no
    target: nothing predicts it."""
    if batch.lengths:
        return batch
    rows, length = batch.input_ids_BS.shape
    labels_BS = batch.labels_BS.clone()
    labels_BS[:, 0] = IGNORED
    weights_BS = batch.weights_BS
    return Batch(
        batch.input_ids_BS.view(1, -1),
        batch.attention_mask_BS.view(1, -1),
        labels_BS.view(1, -1),
        None if weights_BS is None else weights_BS.view(1, -1),
        (length,) * rows,
    )


def _weights(batches: Sequence[Batch]) -> list[Tensor]:
    """What targets count for: 1 where a run's all count alike; none where all runs' do."""
    if all(one.weights_BS is None for one in batches):
        return []
    return [
        (one.labels_BS != IGNORED).float() if one.weights_BS is None else one.weights_BS
        for one in batches
    ]


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors), 1)
