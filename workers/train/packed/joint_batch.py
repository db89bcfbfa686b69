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
    """Rows of several runs, one run's after another's."""

    batch: Batch
    part_F: Tensor
    """Whose each position is, by the runs' order; `NOBODY` where another run's rows are longer. So
    a run sees as many positions as alone."""
    sequence_F: Tensor
    """The number of each position's sequence."""


def joined(batches: Sequence[Batch], pad_token_id: int) -> JointBatch:
    """The batches of several runs, all padded or all packed, as one."""
    if batches[0].lengths:
        return _packed(batches)
    longest = max(one.input_ids_BS.shape[1] for one in batches)
    parts = [torch.full_like(one.input_ids_BS, number) for number, one in enumerate(batches)]
    batch = Batch(
        _stacked([one.input_ids_BS for one in batches], longest, pad_token_id),
        _stacked([one.attention_mask_BS for one in batches], longest, 0),
        _stacked([one.labels_BS for one in batches], longest, IGNORED),
        _weights(batches, longest),
    )
    part_F = _stacked(parts, longest, NOBODY).flatten()
    sequence_F = torch.arange(batch.rows).repeat_interleave(longest)
    return JointBatch(batch, part_F, sequence_F)


def _packed(batches: Sequence[Batch]) -> JointBatch:
    tokens = [one.input_ids_BS.shape[1] for one in batches]
    lengths = tuple(length for one in batches for length in one.lengths)
    weights_BS = _weights(batches, None)
    batch = Batch(
        torch.cat([one.input_ids_BS for one in batches], 1),
        torch.cat([one.attention_mask_BS for one in batches], 1),
        torch.cat([one.labels_BS for one in batches], 1),
        weights_BS,
        lengths,
    )
    part_F = torch.arange(len(batches)).repeat_interleave(torch.tensor(tokens))
    sequence_F = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return JointBatch(batch, part_F, sequence_F)


def _weights(batches: Sequence[Batch], longest: int | None) -> Tensor | None:
    """What targets count for, where any run's do not all count alike."""
    if all(one.weights_BS is None for one in batches):
        return None
    each = [
        (one.labels_BS != IGNORED).float() if one.weights_BS is None else one.weights_BS
        for one in batches
    ]
    return torch.cat(each, 1) if longest is None else _stacked(each, longest, 0)


def _stacked(tensors: Sequence[Tensor], longest: int, filled: int) -> Tensor:
    """Rows of all, filled up on the right."""
    return torch.cat(
        [functional.pad(one, (0, longest - one.shape[1]), value=filled) for one in tensors]
    )
