"""Attention of several sequences that lie one after the other: each meets its own keys only.

No number of one sequence takes part in another's sums, not even times zero: what is not finite
stays where it is. On a GPU, in half precision, torch's kernel for sequences of any length does it
at once (with one split what it gives does not depend on the batch); else one follows another.

Shapes: H query heads, G key and value heads, D a head's width, T queries and U keys of all
sequences, Q queries and S keys of one, N sequences.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

KERNEL_DTYPES = (torch.float16, torch.bfloat16)
KERNEL_WIDTH, KERNEL_STEP = 256, 8
"""Of a head at most, and what it is a multiple of."""
KERNEL_CAPABILITY = (8, 0)
"""Ampere: FlashAttention needs it."""


class Packed(NamedTuple):
    """Where the sequences lie. The last queries of each belong to its last keys."""

    start_q: Tensor
    """Where each begins, and where the last one ends, [N + 1], int32."""
    start_k: Tensor
    longest_q: int
    longest_k: int
    lengths: Sequence[int] | None = None
    """Of each, where queries and keys are as many and the host knows; else it has to ask."""


class Seen(NamedTuple):
    """What a query sees of its sequence: keys up to its own, weighed by their scores."""

    window: int | None
    """Keys that it sees at most, its own among them; None: all."""
    scale: float | None
    """Of the scores; None: 1 / sqrt(D)."""
    dropout: float = 0.0
    """Share of the keys that a query is kept from seeing, by chance."""


def attend(
    query_1HTD: Tensor, key_1GUD: Tensor, value_1GUD: Tensor, packed: Packed, seen: Seen
) -> Tensor:
    """What every query gets, [1, T, H, D]."""
    if not seen.dropout and has_kernel(query_1HTD, value_1GUD):
        asked = kernel_arguments(query_1HTD, key_1GUD, value_1GUD, packed, seen)
        output_THD = varlen_attn(**asked)
        assert isinstance(output_THD, Tensor)  # a tuple if more was asked for
        return output_THD.unsqueeze(0)
    lengths_q, lengths_k = _lengths(packed)
    if lengths_q == lengths_k:  # nobody decodes
        return _alike(query_1HTD, key_1GUD, value_1GUD, lengths_q, seen)
    parts = zip(
        torch.split(query_1HTD, lengths_q, 2),
        torch.split(key_1GUD, lengths_k, 2),
        torch.split(value_1GUD, lengths_k, 2),
        strict=True,
    )
    outputs = [_one(query, key, value, seen) for query, key, value in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _alike(
    query_1HTD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor, lengths: Sequence[int], seen: Seen
) -> Tensor:
    """`attend` where each sequence has as many queries as keys: neighbours of one length at once,
    [1, T, H, D]."""
    heads = query_1HTD.shape[1]
    whole = (query_1HTD, _of_heads(key_1GTD, heads), _of_heads(value_1GTD, heads))
    groups = [(length, len(list(some))) for length, some in groupby(lengths)]
    sizes = [length * count for length, count in groups]
    outputs = []
    for (length, _), *own in zip(
        groups, *(torch.split(one, sizes, 2) for one in whole), strict=True
    ):
        query, key, value = (one[0].unflatten(1, (-1, length)).transpose(0, 1) for one in own)
        output_NHSD = _one(query, key, value, seen)
        outputs.append(output_NHSD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0)


def _lengths(packed: Packed) -> tuple[list[int], list[int]]:
    """Of each sequence's queries and keys."""
    if packed.lengths is not None:
        return list(packed.lengths), list(packed.lengths)
    return packed.start_q.diff().tolist(), packed.start_k.diff().tolist()


def has_kernel(query_1HTD: Tensor, value_1GUD: Tensor) -> bool:
    """Whether torch's kernel takes these: FlashAttention, on an NVIDIA GPU in half precision."""
    width = query_1HTD.shape[-1]
    return (
        query_1HTD.is_cuda
        and query_1HTD.dtype in KERNEL_DTYPES
        and width == value_1GUD.shape[-1] <= KERNEL_WIDTH
        and width % KERNEL_STEP == 0
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query_1HTD.device) >= KERNEL_CAPABILITY
    )


def kernel_arguments(
    query_1HTD: Tensor, key_1GUD: Tensor, value_1GUD: Tensor, packed: Packed, seen: Seen
) -> dict[str, Any]:
    """As `varlen_attn` wants them."""
    return {
        "query": query_1HTD.squeeze(0).transpose(0, 1),
        "key": key_1GUD.squeeze(0).transpose(0, 1),
        "value": value_1GUD.squeeze(0).transpose(0, 1),
        "cu_seq_q": packed.start_q,
        "cu_seq_k": packed.start_k,
        "max_q": packed.longest_q,
        "max_k": packed.longest_k,
        "scale": seen.scale,
        # Keys to the left of a query's own, and to the right of it.
        "window_size": (-1 if seen.window is None else seen.window - 1, 0),
        "enable_gqa": query_1HTD.shape[1] != key_1GUD.shape[1],
        "num_splits": 1,
    }


def _one(query_1HQD: Tensor, key_1GSD: Tensor, value_1GSD: Tensor, seen: Seen) -> Tensor:
    """One sequence, or several of one length in place of the 1: [1, H, Q, D]."""
    heads, queries, width = query_1HQD.shape[1:]
    groups, keys = key_1GSD.shape[1:3]
    if queries == 1 and (seen.window is None or keys <= seen.window):
        # It may see all keys there are; heads of a group are queries of one head.
        query_1HQD = query_1HQD.reshape(-1, groups, heads // groups, width)
        output = functional.scaled_dot_product_attention(
            query_1HQD, key_1GSD, value_1GSD, dropout_p=seen.dropout, scale=seen.scale
        )
        return output.reshape(len(output), heads, 1, -1)
    seen_QS = None
    if queries < keys or (seen.window is not None and keys > seen.window):
        seen_QS = _mask(queries, keys, seen.window, query_1HQD.device)
    return functional.scaled_dot_product_attention(
        query_1HQD,
        _of_heads(key_1GSD, heads),
        _of_heads(value_1GSD, heads),
        attn_mask=seen_QS,
        dropout_p=seen.dropout,
        is_causal=seen_QS is None,
        scale=seen.scale,
    )


def _of_heads(key_1GSD: Tensor, heads: int) -> Tensor:
    """The keys, or values, that each query head sees."""
    groups = key_1GSD.shape[1]
    return key_1GSD if groups == heads else key_1GSD.repeat_interleave(heads // groups, dim=1)


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: up to its own, and no farther back than the window."""
    last_Q1 = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    key_S = torch.arange(keys, device=device)
    seen_QS = key_S <= last_Q1
    return seen_QS if window is None else seen_QS & (key_S > last_Q1 - window)
