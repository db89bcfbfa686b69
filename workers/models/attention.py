"""Attention sequence by sequence, for continuous batching and packed rows, on any device.

transformers' own way is one dense matmul of all queries with all sequences' keys and a mask: its
work grows with the square of the batch, and a number that is not finite in one sequence reaches all
others as 0 times NaN. Here every sequence meets its own keys only (`sequences.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from workers.config.base import InputError
from workers.models.sequences import Packed, Seen, attend

BY_SEQUENCE = "moetune_by_sequence"
LOOKING = "moetune_looking"
ROW_LENGTHS = "moetune_row_lengths"
"""Name of the argument that tells the host how long packed rows are."""
REFUSED = {"softcap": "a soft cap", "position_bias": "a position bias"}
"""What a model may ask of its attention that no batch computes: transformers' sdpa refuses a soft
cap at the first request, as ours does, and its eager way leaves both out without a word."""


def check_attention(model: PreTrainedModel) -> None:
    """Run a token up to the model's first attention, and see what that is asked for. Raises
    InputError where batches would not compute it."""
    try:
        with torch.no_grad(), attending(model, LOOKING, _look):
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    except _AskedError as asked:
        wrong = [REFUSED[name] for name in asked.names]
    else:
        wrong = ["code of its own, which does not reach the cache"]
    if wrong:
        raise InputError(
            f"the base model cannot be batched: the attention of {type(model).__name__} has "
            f"{' and '.join(wrong)}"
        )


class _AskedError(Exception):
    """Ends the look; says what was asked for."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


def _look(*_: Any, **options: Any) -> None:
    raise _AskedError([name for name in REFUSED if options.get(name) is not None])


@contextmanager
def attending(model: PreTrainedModel, name: str, function: Any) -> Iterator[None]:
    """Inside the block the model's attention is this function, under this name. transformers builds
    no mask for a way that it does not know."""
    before = model.config._attn_implementation
    AttentionInterface.register(name, function)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend_by_sequence(model: PreTrainedModel) -> None:
    """Let a model that is about to be batched use it, in place of `sdpa`.

    transformers builds no mask for a way that it does not know, which saves that work too.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(BY_SEQUENCE, by_sequence)
        model.set_attn_implementation(BY_SEQUENCE)


def attend_as_before(model: PreTrainedModel) -> None:
    """Undo it."""
    if model.config._attn_implementation == BY_SEQUENCE:
        model.set_attn_implementation("sdpa")


def by_sequence(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa` on a batch [1, heads, tokens, D] of several sequences.

    Grouped heads and sliding windows are as there; keys of earlier tokens are in a paged cache, if
    there is one. `check_attention` or `check_packing` has seen to it that nobody asks for more.
    """
    for name in REFUSED:
        if options.get(name) is not None:
            raise ValueError(f"attention by sequence has no {name}")
    cache, window = options.pop("cache", None), options.get("sliding_window")
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx, options)
        window = getattr(cache.layer_to_allocator[module.layer_idx], "sliding_window", None)
    starts = options["cu_seq_lens_q"], options["cu_seq_lens_k"]
    longest = options["max_length_q"], options["max_length_k"]
    packed = Packed(*starts, *longest, options.get(ROW_LENGTHS))
    seen = Seen(window, options.get("scaling"), options.get("dropout") or 0.0)
    return attend(query, key, value, packed, seen), None
