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
    lengths = tuple(length for one in batches for length in one.lengths)
    lay = _in_one_row if lengths else _filled_up
    parts = [torch.full_like(one.input_ids_BS, number) for number, one in enumerate(batches)]
    batch = Batch(
        lay([one.input_ids_BS for one in batches], pad_token_id),
        lay([one.attention_mask_BS for one in batches], 0),
        lay([one.labels_BS for one in batches], IGNORED),
        None if all(one.weights_BS is None for one in batches) else lay(_weights(batches), 0),
        lengths,
    )
    each = torch.tensor(lengths) if lengths else batch.input_ids_BS.shape[1]
    sequence_F = torch.arange(batch.rows).repeat_interleave(each)
    return JointBatch(batch, lay(parts, NOBODY).flatten(), sequence_F)


def _weights(batches: Sequence[Batch]) -> list[Tensor]:
    """What targets count for: 1 where a run's all count alike."""
    return [
        (one.labels_BS != IGNORED).float() if one.weights_BS is None else one.weights_BS
        for one in batches
    ]


def _in_one_row(tensors: Sequence[Tensor], _: int) -> Tensor:
    """Packed rows of all, one run's behind another's."""
    return torch.cat(list(tensors), 1)


def _filled_up(tensors: Sequence[Tensor], filled: int) -> Tensor:
    """Rows of all, filled up on the right to the longest."""
    longest = max(one.shape[1] for one in tensors)
    return torch.cat(
        [functional.pad(one, (0, longest - one.shape[1]), value=filled) for one in tensors]
    )
