"""Forward passes over packed rows: one row of tensors in which rows follow one another.

Every row has positions of its own and meets its own tokens only, as far as a model leaves both to
its arguments and to its attention; which models do is found out by a look at one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.config.attention import is_flash
from workers.config.base import InputError, one_line
from workers.layers.ops.transfer import onto
from workers.models.attention import (
    BY_SEQUENCE,
    LOOKING,
    REFUSED,
    ROW_LENGTHS,
    attending,
    by_sequence,
)

UNSEEN = {**REFUSED, "s_aux": "attention sinks"}
"""What a model may ask of its attention that packed rows do not get."""
_OTHERWISE = "not all of its layers take transformers' attention functions"


def packed_arguments(
    model: PreTrainedModel, lengths: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """What says to a model's forward pass that rows of these lengths follow one another."""
    start = onto(device, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32))
    position = torch.cat([torch.arange(length) for length in lengths])
    # Where they are attended one by one, the host has to know them in every layer.
    told = {ROW_LENGTHS: lengths} if model.config._attn_implementation == BY_SEQUENCE else {}
    return {
        "position_ids": onto(device, position.unsqueeze(0)),
        "cu_seq_lens_q": start,
        "cu_seq_lens_k": start,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        **told,
    }


@contextmanager
def taking_packed_rows(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model takes packed rows alone; for forward and backward passes. One with
    FlashAttention always does: that reads the rows' lengths itself."""
    if takes_packed_rows(model):
        yield
        return
    with attending(model, BY_SEQUENCE, by_sequence):
        yield


def takes_packed_rows(model: PreTrainedModel) -> bool:
    """Whether it does now."""
    name = model.config._attn_implementation
    return name == BY_SEQUENCE or is_flash(name)


def check_packing(model: PreTrainedModel) -> None:
    """Run two rows of a token through the model, and see what its attention is asked for. Raises
    InputError where packed rows would not get what they get alone.

    A model without weights (on `meta`) may be too little to look at; then it passes.
    """
    if not model._can_set_attn_implementation():
        raise _refusal(model, _OTHERWISE)
    looked: list[dict[str, Any]] = []
    token = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    arguments = packed_arguments(model, [1, 1], model.device) | {"use_cache": False}
    try:
        with torch.no_grad(), attending(model, LOOKING, _look):
            model(token, attention_mask=torch.ones_like(token), looked=looked, **arguments)
    except (ValueError, TypeError) as error:
        raise _refusal(model, one_line(error)) from error
    except (RuntimeError, NotImplementedError):
        if model.device.type != "meta":
            raise
        return
    asked = {name for options in looked for name in UNSEEN if options.get(name) is not None}
    if asked:
        raise _refusal(model, f"its attention has {' and '.join(UNSEEN[name] for name in asked)}")
    if len(looked) < model.config.get_text_config().num_hidden_layers:
        raise _refusal(model, _OTHERWISE)
    if not model._supports_flash_attn:  # a mask says what the arguments do not
        raise _refusal(model, "its attention has a mask of its own")


def keeps_rows_apart(model: PreTrainedModel) -> bool:
    """Whether `check_packing` finds nothing."""
    try:
        check_packing(model)
    except InputError:
        return False
    return True


def _refusal(model: PreTrainedModel, why: str) -> InputError:
    return InputError(
        f"data.packing: {type(model).__name__} does not keep packed rows apart: {why}; leave it out"
    )


def _look(
    _module: nn.Module, query: Tensor, _key: Tensor, value: Tensor, _mask: Any = None, **asked: Any
) -> tuple[Tensor, None]:
    """Note what is asked for; nothing is computed."""
    batch, heads, tokens, _ = query.shape
    if "looked" in asked and "cu_seq_lens_q" in asked:
        asked["looked"].append(asked)
    return query.new_zeros(batch, tokens, heads, value.shape[-1]), None
