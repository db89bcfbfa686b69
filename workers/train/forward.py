"""The forward pass, with logits only from where a target begins.

Tensor suffixes: B rows, S positions, N the last positions, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from workers.data.batches import Batch
from workers.injection.adapter import Adapter, LayerRecord
from workers.losses.cross_entropy import IGNORED, predicted
from workers.models.base import Base


class ScoredLogits(NamedTuple):
    """What the loss reads of a forward pass, on the base's device."""

    logits_BNV: Tensor
    target_BN: Tensor
    """What each position predicts, or IGNORED."""
    weight_BN: Tensor | None
    """What each target counts for; None where all count alike."""


def scored_logits(base: Base, batch: Batch) -> ScoredLogits:
    """Of the positions from the one that predicts the batch's first target token; `batch` is on the
    CPU.

    The output matrix of a small model with a large vocabulary is a fifth of its work, and prompts
    need none of it.
    """
    first = int((batch.labels_BS != IGNORED).any(0).nonzero()[0]) - 1
    there = batch.to(base.device)
    target_BN = predicted(there.labels_BS)[:, first:]
    options: dict[str, Tensor] = {}
    if "logits_to_keep" in inspect.signature(base.model.forward).parameters:
        # Positions rather than their number: the model then gathers the hidden states instead of
        # viewing them, and of a view its output linear would copy the vocabulary for every row.
        options["logits_to_keep"] = torch.arange(first, there.labels_BS.shape[1])
    output = base.model(
        input_ids=there.input_ids_BS,
        attention_mask=there.attention_mask_BS,
        use_cache=False,
        **options,
    )
    logits_BNV = output.logits
    if logits_BNV.shape[1] > target_BN.shape[1]:  # A view's gradient is a copy of all logits.
        logits_BNV = logits_BNV[:, -target_BN.shape[1] :]
    weights_BS = there.weights_BS
    weight_BN = None if weights_BS is None else predicted(weights_BS, 0)[:, first:]
    return ScoredLogits(logits_BNV, target_BN, weight_BN)


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
