"""The forward pass, scored by its target tokens alone.

Tensor suffixes: B rows, S positions, F all positions of all rows, T target tokens, D model width,
V vocabulary, t tokens of a piece.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workers.config.attention import is_flash
from workers.data.batches import Batch
from workers.injection.adapter import Adapter, LayerRecord
from workers.layers.ops.transfer import onto
from workers.losses.cross_entropy import IGNORED, predicted
from workers.losses.head_loss import PiecewiseHead, piece_tokens
from workers.models.base import Base
from workers.models.packing import packed_arguments, takes_packed_rows, taking_packed_rows

Score = Callable[[PiecewiseHead, Tensor], Tensor]
"""Makes losses of the head and of the hidden states [T, D] of what predicts a target."""


class _Targets(NamedTuple):
    """The tokens that a batch is scored by, row after row, on the base's device."""

    place_T: Tensor
    """Which of all positions predicts each."""
    token_T: Tensor
    weight_T: Tensor | None
    """What each counts for; None where all count alike."""


def batch_loss(base: Base, batch: Batch) -> Tensor:
    """Sum of -log p over the target tokens, in at least float32; with weights, each times its own.
    `batch` is on the CPU.

    Positions that predict no target do not meet the output head, and there are never logits of all
    that do: the head is a fifth of a small model's work, and its output a step's largest tensor.
    """
    targets = _targets(batch, base.device)

    def score(head: PiecewiseHead, hidden_TD: Tensor) -> Tensor:
        return head.loss(hidden_TD, targets.token_T, targets.weight_T)

    return _scored(base, batch, targets, score)


def part_losses(base: Base, batch: Batch, part_F: Tensor, parts: int) -> Tensor:
    """`batch_loss` of each part of a batch, [P]. `part_F` has the part of each position, on the
    CPU; no target is of none (-1). The head must not learn."""
    targets = _targets(batch, base.device)
    part_T = onto(base.device, part_F[_scored_places(batch)])

    def score(head: PiecewiseHead, hidden_TD: Tensor) -> Tensor:
        loss_T = head.each(hidden_TD, targets.token_T, targets.weight_T)
        return loss_T.new_zeros(parts).index_add(0, part_T, loss_T)

    return _scored(base, batch, targets, score)


@torch.no_grad()
def target_losses(base: Base, batch: Batch) -> Tensor:
    """-log p of each target token, row after row, without gradients."""
    targets = _targets(batch, base.device)
    return _scored(
        base, batch, targets, lambda head, hidden_TD: head.losses(hidden_TD, targets.token_T)
    )


def row_losses(base: Base, batch: Batch) -> list[tuple[float, float]]:
    """What `batch_loss` gives for each row alone, summed in float64, and what its targets count
    for; without gradients."""
    loss_T = target_losses(base, batch).double().cpu()
    real_BS, weights_BS = predicted(batch.labels_BS) != IGNORED, batch.weights_BS
    counted_BS = real_BS.double() if weights_BS is None else real_BS * predicted(weights_BS, 0)
    loss_BS = torch.zeros(real_BS.shape, dtype=torch.float64)
    loss_BS[real_BS] = loss_T
    sums = (loss_BS * counted_BS).sum(1), counted_BS.double().sum(1)
    return list(zip(*(one.tolist() for one in sums), strict=True))


def _scored(base: Base, batch: Batch, targets: _Targets, score: Score) -> Tensor:
    vocabulary = base.model.config.get_text_config().vocab_size
    size = piece_tokens(len(targets.token_T), vocabulary, base.device.type)
    if base.head is None:
        whole = PiecewiseHead(lambda logits_tV: logits_tV, [], size)
        return score(whole, _picked(_logits(base, batch), targets))
    head, found = PiecewiseHead(base.head, base.head.trained, size), []

    def use(hidden_BSD: Tensor) -> None:
        found.append(score(head, _picked(hidden_BSD, targets)))

    with base.head.instead(use):
        none_B0V = _logits(base, batch)
    # A base in shards is made ready for the backward pass where gradients reach its output.
    return found[0] + none_B0V.sum()


def _logits(base: Base, batch: Batch) -> Tensor:
    options: dict[str, Any] = {}
    if base.needs_mask or batch.lengths:
        options["attention_mask"] = onto(base.device, batch.attention_mask_BS)
    if lengths := _told_lengths(base, batch):
        options |= packed_arguments(base.model, lengths, base.device)
    input_ids_BS = onto(base.device, batch.input_ids_BS)
    logits_BSV: Tensor = base.model(input_ids=input_ids_BS, use_cache=False, **options).logits
    return logits_BSV


def _told_lengths(base: Base, batch: Batch) -> tuple[int, ...]:
    """Those of packed rows; and that of a single row where FlashAttention would look for more of
    them in its positions, which makes a GPU wait in every layer."""
    if batch.lengths:
        assert takes_packed_rows(base.model), "rows would meet each other"
        return batch.lengths
    alone = len(batch.input_ids_BS) == 1 and not base.needs_mask
    looks = is_flash(base.model.config._attn_implementation)
    return (batch.input_ids_BS.shape[1],) if alone and looks else ()


def _targets(batch: Batch, device: torch.device) -> _Targets:
    """Found on the CPU: a GPU would have to be waited for, to know their number."""
    token_F, place_T = predicted(batch.labels_BS).flatten(), _scored_places(batch)
    weight_T = None
    if batch.weights_BS is not None:
        weight_T = onto(device, predicted(batch.weights_BS, 0).flatten()[place_T])
    return _Targets(onto(device, place_T), onto(device, token_F[place_T]), weight_T)


def _scored_places(batch: Batch) -> Tensor:
    return (predicted(batch.labels_BS).flatten() != IGNORED).nonzero().flatten()


def _picked(tensor_BSX: Tensor, targets: _Targets) -> Tensor:
    return tensor_BSX.flatten(0, 1).index_select(0, targets.place_T)


def attending(base: Base, batches: Sequence[Batch]) -> AbstractContextManager[None]:
    """For the passes of a step, which are packed or padded together."""
    packed = any(batch.lengths for batch in batches)
    return taking_packed_rows(base.model) if packed else nullcontext()


@contextmanager
def laid_out(adapter: Adapter, base: Base, batch: Batch) -> Iterator[None]:
    """For a forward pass and its backward pass: routers know where the rows of a packed batch lie,
    and linears that read the same share a dropout mask."""
    with adapter.inputs.shared():
        if not batch.lengths:
            yield
            return
        lengths = torch.tensor(batch.lengths)
        sequence_T = torch.arange(len(lengths)).repeat_interleave(lengths)
        with adapter.rows.packed(onto(base.device, sequence_T)):
            yield


@contextmanager
def recorded(
    adapter: Adapter | None, base: Base, batch: Batch, *, rank_space: bool
) -> Iterator[list[LayerRecord]]:
    """Collect what the routed places do with the real tokens; without an adapter, nothing."""
    if adapter is None:
        yield []
        return
    mask_BS = onto(base.device, batch.attention_mask_BS)
    with adapter.record(mask_BS, rank_space=rank_space) as records:
        yield records
