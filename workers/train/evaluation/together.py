"""The validation rows with several adapters on one base: the rows of all go through it together.

Tensor suffixes: B rows, S positions.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

import torch

from workers.data.batches import Batch, collate
from workers.injection.adapter import Adapter, LayerRecord
from workers.injection.askers import Askers
from workers.injection.row_map import RowMap, TokenPart
from workers.layers.ops.transfer import onto
from workers.train.evaluation.evaluator import Evaluation, ScoredRows
from workers.train.forward import row_losses


@torch.no_grad()
def scored_together(evaluations: Sequence[Evaluation], last: Sequence[bool]) -> list[ScoredRows]:
    """What each adapter makes of the rows, which are the same ones, and its answers; `last` as in
    Evaluation. The model must be in eval mode. A pass has as many rows of each adapter as the first
    one's evaluation has in all."""
    first = evaluations[0]
    examples = [first.inputs.validation_examples[index] for index in first.mine]
    counts = [one.no_counts() for one in evaluations]
    losses = [[(0.0, 0.0)] * len(examples) for _ in evaluations]

    def score(rows: Sequence[int]) -> None:
        batch = collate([examples[row] for row in rows], first.inputs.pad_token_id)
        records, sums = _pass(evaluations, batch)
        for at, own in enumerate(records):
            counts[at].count(own, batch.attention_mask_BS, rows)
            mine = sums[at * len(rows) : (at + 1) * len(rows)]
            for row, of_row in zip(rows, mine, strict=True):
                losses[at][row] = of_row

    first.in_passes([len(one) for one in examples], score)
    written = _written(evaluations, last)
    return [ScoredRows(*one) for one in zip(losses, counts, written, strict=True)]


def _written(evaluations: Sequence[Evaluation], last: Sequence[bool]) -> list[dict[int, list[int]]]:
    """By adapter the answers that are written in this evaluation, by row; none where the model
    cannot batch them."""
    first, written = evaluations[0], [dict[int, list[int]]() for _ in evaluations]
    asked = [
        (at, index)
        for at, (one, is_last) in enumerate(zip(evaluations, last, strict=True))
        for index in one.to_write(last=is_last)
    ]
    if not asked:
        return written
    askers = _askers(evaluations, [at for at, _ in asked])
    answers = first.batched(first.prompts([index for _, index in asked]), askers)
    for (at, index), ids in zip(asked, answers or (), strict=answers is not None):
        written[at][index] = ids
    return written


def _pass(
    evaluations: Sequence[Evaluation], batch: Batch
) -> tuple[list[list[LayerRecord]], list[tuple[float, float]]]:
    """The rows with one adapter after another: of each what its places did; and of each row, the
    first adapter's first, its loss sum and what that counts."""
    base, adapters = evaluations[0].inputs.base, [one.adapter for one in evaluations]
    joint = _as_often(batch, len(adapters))
    # As a joint step does it (workers.train.packed.joint_layout).
    apart = base.device.type == "cpu"
    mask_BS = onto(base.device, (batch if apart else joint).attention_mask_BS)
    with ExitStack() as stack:
        stack.enter_context(_apart(adapters, batch) if apart else _mixed(adapters, batch))
        records = [
            stack.enter_context(one.record(mask_BS, rank_space=False)) if one else []
            for one in adapters
        ]
        sums = row_losses(base, joint)
    return records, sums


def _as_often(batch: Batch, times: int) -> Batch:
    """All its rows, and all of them again."""
    tensors = batch.input_ids_BS, batch.attention_mask_BS, batch.labels_BS
    weights_BS = batch.weights_BS
    again_BS = None if weights_BS is None else weights_BS.repeat(times, 1)
    ids_BS, mask_BS, labels_BS = (one.repeat(times, 1) for one in tensors)
    return Batch(ids_BS, mask_BS, labels_BS, again_BS)


def _apart(adapters: Sequence[Adapter | None], batch: Batch) -> AbstractContextManager[None]:
    tokens, (rows, length) = batch.input_ids_BS.numel(), batch.input_ids_BS.shape
    sequence_t = torch.arange(rows).repeat_interleave(length)
    parts = [TokenPart(one.slot if one else None, tokens, 0, sequence_t) for one in adapters]
    return _row_map(adapters).apart(parts)


def _mixed(adapters: Sequence[Adapter | None], batch: Batch) -> AbstractContextManager[None]:
    slots = [one.slot if one else None for one in adapters for _ in range(batch.rows)]
    return _row_map(adapters).assign(slots)


def _row_map(adapters: Sequence[Adapter | None]) -> RowMap:
    return next(one.rows for one in adapters if one)


def _askers(evaluations: Sequence[Evaluation], whose: Sequence[int]) -> Askers:
    """Slots of prompts, given each one's place among the evaluations."""
    adapters = [one.adapter for one in evaluations]
    slots = [adapter.slot if adapter else None for adapter in adapters]
    return Askers(_row_map(adapters), [slots[at] for at in whose])
