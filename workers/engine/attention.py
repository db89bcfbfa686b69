"""Attention sequence by sequence, for continuous batching on a CPU.

transformers' own way there is one dense matmul of all queries with all requests' keys and a mask:
its work grows with the square of the batch, and a number that is not finite in one request reaches
all others as 0 times NaN. Here every request meets its own keys only.

Shapes: H query heads, G key and value heads, D a head's width, Q queries and S keys of a sequence.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from workers.spec import InputError

BY_SEQUENCE = "moetune_by_sequence"
LOOKING = "moetune_looking"
REFUSED = {"softcap": "a soft cap", "position_bias": "a position bias"}
"""What a model may ask of its attention that no batch on a CPU computes: transformers' sdpa refuses
a soft cap at the first request, as ours does, and its eager way leaves both out without a word."""


def check_attention(model: PreTrainedModel) -> None:
    """Run a token up to the model's first attention, and see what that is asked for. Raises
    InputError where batches would not compute it."""
    before = model.config._attn_implementation
    AttentionInterface.register(LOOKING, _look)
    model.set_attn_implementation(LOOKING)
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    except _AskedError as asked:
        wrong = [REFUSED[name] for name in asked.names]
    else:
        wrong = ["code of its own, which does not reach the cache"]
    finally:
        model.set_attn_implementation(before)
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


def attend_by_sequence(model: PreTrainedModel) -> None:
    """Let a CPU model that is about to be batched use it, in place of `sdpa`.

    transformers builds no mask for a way that it does not know, which saves that work too.
    """
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
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

    Grouped heads and sliding windows are as there. `check_attention` has seen to it that nobody
    asks for more.
    """
    for name in REFUSED:
        if options.get(name) is not None:
            raise ValueError(f"attention by sequence has no {name}")
    cache = options.pop("cache")
    key, value = cache.update(key, value, module.layer_idx, options)
    window = getattr(cache.layer_to_allocator[module.layer_idx], "sliding_window", None)
    queries = options["cu_seq_lens_q"].tolist()
    keys = options["cu_seq_lens_k"].tolist()
    outputs = []
    for at in range(len(queries) - 1):
        own_q, own_k = slice(*queries[at : at + 2]), slice(*keys[at : at + 2])
        outputs.append(
            _attend(query[..., own_q, :], key[..., own_k, :], value[..., own_k, :], window, options)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _attend(
    query_1HQD: Tensor,
    key_1GSD: Tensor,
    value_1GSD: Tensor,
    window: int | None,
    options: dict[str, Any],
) -> Tensor:
    """One sequence; its last queries belong to its last keys."""
    scale, dropout = options.get("scaling"), options.get("dropout", 0.0)
    heads, queries, width = query_1HQD.shape[1:]
    groups, keys = key_1GSD.shape[1:3]
    if queries == 1:  # it may see all keys there are; heads of a group are queries of one head
        query_1HQD = query_1HQD.reshape(1, groups, heads // groups, width)
        output = functional.scaled_dot_product_attention(
            query_1HQD, key_1GSD, value_1GSD, dropout_p=dropout, scale=scale
        )
        return output.reshape(1, heads, 1, -1)
    seen_QS = None
    if queries < keys or (window is not None and keys > window):
        seen_QS = _seen(queries, keys, window, query_1HQD.device)
    return functional.scaled_dot_product_attention(
        query_1HQD,
        key_1GSD.repeat_interleave(heads // groups, dim=1),
        value_1GSD.repeat_interleave(heads // groups, dim=1),
        attn_mask=seen_QS,
        dropout_p=dropout,
        is_causal=seen_QS is None,
        scale=scale,
    )


def _seen(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: up to its own, and no farther back than the window."""
    last_Q1 = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    key_S = torch.arange(keys, device=device)
    seen_QS = key_S <= last_Q1
    return seen_QS if window is None else seen_QS & (key_S > last_Q1 - window)
