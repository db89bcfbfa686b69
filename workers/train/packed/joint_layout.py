"""How a pass lays out the rows of several runs, and which adapter computes what of it.

Tensor suffixes: F all positions of all rows, f those of one run.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.data.batches import Batch
from workers.injection.inject import row_map
from workers.injection.row_map import RowMap, Slot, TokenPart
from workers.layers.ops.transfer import onto
from workers.models.base import Base
from workers.models.packing import keeps_rows_apart
from workers.train.packed.joint_batch import NOBODY, JointBatch, filled_up, in_one_row


@dataclass(frozen=True)
class JointLayout:
    """What suits a base, where it lies."""

    in_one_row: bool
    """Rows one after another, rather than all padded to the longest."""
    apart: bool
    """Each adapter meets its rows by itself, rather than all in one bank. The work is then that of
    the runs alone; a bank takes fewer and larger operations for it, as a GPU wants."""

    @classmethod
    def of(cls, base: Base) -> "JointLayout":
        """One row wherever the base keeps rows in it apart, and needs no mask for what fills them
        up."""
        with row_map(base.model).everywhere(None):
            in_one_row = not base.needs_mask and keeps_rows_apart(base.model)
        return cls(in_one_row, base.device.type == "cpu")

    def packs(self, batches: Sequence[Batch]) -> bool:
        """Whether passes of these are one row of packed ones."""
        return self.in_one_row or any(one.lengths for one in batches)

    def joined(self, batches: Sequence[Batch], pad_token_id: int) -> JointBatch:
        """The batches of several runs, all padded or all packed, as one."""
        return in_one_row(batches) if self.packs(batches) else filled_up(batches, pad_token_id)

    def computing(
        self, rows: RowMap, joint: JointBatch, seeds: Mapping[Slot, int], device: torch.device
    ) -> tuple[AbstractContextManager[None], Sequence[Tensor]]:
        """A block for a forward pass and its backward pass, in which each run's adapter computes
        its part; and by run, 1 on real tokens: of all positions, or of its own where it computes
        apart. `seeds` by slot, in the runs' order: what their random numbers hang on."""
        sequence_F, real_F = onto(device, joint.sequence_F), onto(device, joint.real_F)
        slots = [*seeds]
        if not (self.apart and joint.batch.lengths):
            slots_F = [None if at == NOBODY else slots[at] for at in joint.part_F.tolist()]
            return rows.training(slots_F, sequence_F, seeds), [real_F] * len(slots)
        sizes = joint.part_F.bincount(minlength=len(slots)).tolist()
        own = zip(seeds.items(), sizes, torch.split(sequence_F, sizes), strict=True)
        parts = [TokenPart(slot, size, seed, seq_f) for (slot, seed), size, seq_f in own]
        return rows.apart(parts), torch.split(real_F, sizes)
