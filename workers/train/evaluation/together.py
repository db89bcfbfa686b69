"""The validation rows with several adapters on one base: the rows of all go through it together.

Tensor suffixes: B rows, S positions.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from workers.data.batches import Batch, collate
from workers.injection.adapter import LayerRecord
from workers.injection.askers import Askers
from workers.train.evaluation.evaluator import Evaluation, ScoredRows
from workers.train.forward import recorded, row_losses


@torch.no_grad()
def scored_together(evaluations: Sequence[Evaluation], last: Sequence[bool]) -> list[ScoredRows]:
    """What each adapter makes of the rows, which are the same ones, and its answers; `last` as in
    Evaluation. The model must be in eval mode. As many rows go at once as in the first one's
    evaluation."""
    first, slots = evaluations[0], len(evaluations)
    examples = [first.inputs.validation_examples[index] for index in first.mine]
    counts = [one.no_counts() for one in evaluations]
    losses = [[(0.0, 0.0)] * len(examples) for _ in evaluations]

    def score(places: Sequence[int]) -> None:
        """Places are those of a row with one adapter after the other, then of the next row."""
        ordered = sorted(places, key=lambda place: place % slots)
        batch = collate([examples[place // slots] for place in ordered], first.inputs.pad_token_id)
        whose = [place % slots for place in ordered]
        records, sums = _pass(evaluations, batch, whose)
        for place, of_row in zip(ordered, sums, strict=True):
            losses[place % slots][place // slots] = of_row
        for slot, own in records.items():
            at = [number for number, other in enumerate(whose) if other == slot]
            rows = [ordered[number] // slots for number in at]
            counts[slot].count(own, batch.attention_mask_BS[at], rows)

    first.in_passes([len(one) for one in examples for _ in evaluations], score)
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
    evaluations: Sequence[Evaluation], batch: Batch, whose: Sequence[int]
) -> tuple[dict[int, list[LayerRecord]], list[tuple[float, float]]]:
    """By adapter what its places did, and of each row its loss sum and what that counts."""
    base, (rows, slots) = evaluations[0].inputs.base, _askers(evaluations, whose)
    with rows.assign(slots), ExitStack() as stack:
        records = {
            at: stack.enter_context(
                recorded(evaluations[at].adapter, base, batch, rank_space=False)
            )
            for at in sorted(set(whose))
        }
        sums = row_losses(base, batch)
    return records, sums


def _askers(evaluations: Sequence[Evaluation], whose: Sequence[int]) -> Askers:
    """Slots of rows, given each one's place among the evaluations."""
    adapters = [one.adapter for one in evaluations]
    slots = [adapter.slot if adapter else None for adapter in adapters]
    rows = next(adapter.rows for adapter in adapters if adapter)
    return Askers(rows, [slots[at] for at in whose])
