"""The forward pass, with logits only from where a target begins.

Tensor suffixes: B rows, S positions, N the last positions, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workers.data.batches import Batch
from workers.injection.adapter import Adapter, LayerRecord
from workers.losses.cross_entropy import IGNORED, predicted
from workers.models.base import Base
from workers.models.packing import packed_arguments, takes_packed_rows


class ScoredLogits(NamedTuple):
    """What the loss reads of a forward pass, on the base's device."""

    logits_BNV: Tensor
    target_BN: Tensor
    """What each position predicts, or IGNORED."""
    weight_BN: Tensor | None
    """What each target counts for; None where all count alike."""


def scored_logits(base: Base, batch: Batch) -> ScoredLogits:
    """Of the positions from the one that predicts the batch's first target token; of a packed
    batch, of those alone that predict one. `batch` is on the CPU.

    The output matrix of a small model with a large vocabulary is a fifth of its work, and prompts
    need none of it.
    """
    kept_N = _kept(batch)
    target_BN = predicted(batch.labels_BS)[:, kept_N].to(base.device)
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(base.model.forward).parameters:
        # Positions rather than their number: the model then gathers the hidden states instead of
        # viewing them, and of a view its output linear would copy the vocabulary for every row.
        options["logits_to_keep"] = kept_N
    if base.needs_mask or batch.lengths:
        options["attention_mask"] = batch.attention_mask_BS.to(base.device)
    if batch.lengths:
        assert takes_packed_rows(base.model), "rows would meet each other"
        options |= packed_arguments(batch.lengths, base.device)
    output = base.model(
        input_ids=batch.input_ids_BS.to(base.device),
        use_cache=False,
        **options,
    )
    logits_BNV = output.logits
    if logits_BNV.shape[1] > len(kept_N):  # A view's gradient is a copy of all logits.
        logits_BNV = logits_BNV[:, kept_N] if batch.lengths else logits_BNV[:, -len(kept_N) :]
    weights_BS = batch.weights_BS
    weight_BN = None if weights_BS is None else predicted(weights_BS, 0)[:, kept_N].to(base.device)
    return ScoredLogits(logits_BNV, target_BN, weight_BN)


@contextmanager
def laid_out(adapter: Adapter, base: Base, batch: Batch) -> Iterator[None]:
    """For forward and backward passes: routers know where the rows of a packed batch lie."""
    if not batch.lengths:
        yield
        return
    lengths = torch.tensor(batch.lengths)
    sequence_T = torch.arange(len(lengths)).repeat_interleave(lengths).to(base.device)
    with adapter.rows.packed(sequence_T):
        yield


@contextmanager
def recorded(
    adapter: Adapter | None, base: Base, batch: Batch, *, rank_space: bool
) -> Iterator[list[LayerRecord]]:
    """Collect what the routed places do with the real tokens; without an adapter, nothing."""
    if adapter is None:
        yield []
        return
    mask_BS = batch.attention_mask_BS.to(base.device)
    with adapter.record(mask_BS, rank_space=rank_space) as records:
        yield records


def _kept(batch: Batch) -> Tensor:
    """The positions whose logits are wanted, on the CPU."""
    real_S = (predicted(batch.labels_BS) != IGNORED).any(0)
    if batch.lengths:
        return real_S.nonzero().flatten()
    return torch.arange(int(real_S.nonzero()[0]), len(real_S))
