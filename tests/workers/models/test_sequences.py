"""Attention of packed sequences against a plain loop in float64, and what is not finite in one."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from workers.models.sequences import Packed, Seen, attend, has_kernel, kernel_arguments

LENGTHS = [(1, 1), (1, 37), (5, 5), (9, 30), (1, 4), (70, 70)]
"""Queries and keys: the first token, decoding, a prompt, a part of one."""
HEADS, WIDTH = 4, 16
WAYS = [
    pytest.param("cpu", torch.float64, 1e-12, id="cpu float64"),
    pytest.param("cpu", torch.bfloat16, 2e-2, id="cpu bfloat16"),
    pytest.param("cuda", torch.float32, 1e-4, id="cuda float32", marks=pytest.mark.gpu),
    pytest.param("cuda", torch.bfloat16, 2e-2, id="cuda kernel", marks=pytest.mark.gpu),
]
ways = pytest.mark.parametrize(("device", "dtype", "error"), WAYS)
shapes = pytest.mark.parametrize(
    ("groups", "window"), [(4, None), (2, None), (1, 6), (2, 1), (4, 40)]
)


def starts(lengths: list[int], device: str) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def packed(device: str) -> Packed:
    queries, keys = (list(one) for one in zip(*LENGTHS, strict=True))
    return Packed(starts(queries, device), starts(keys, device), max(queries), max(keys))


def draw(groups: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (sum(one) for one in zip(*LENGTHS, strict=True))
    query, key, value = (
        torch.randn(1, heads, tokens, WIDTH, generator=generator).to(device, dtype)
        for heads, tokens in ((HEADS, queries), (groups, keys), (groups, keys))
    )
    return query, key, value


def plain(
    query_QHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, window: int | None, scale: float
) -> Tensor:
    """One sequence, a query and a head at a time, in float64: [Q, H, D]."""
    query_QHD, key_SGD, value_SGD = (one.double() for one in (query_QHD, key_SGD, value_SGD))
    output_QHD = torch.empty_like(query_QHD)
    for row in range(len(query_QHD)):
        last = len(key_SGD) - len(query_QHD) + row
        first = 0 if window is None else max(0, last + 1 - window)
        for head in range(HEADS):
            group = head * key_SGD.shape[1] // HEADS
            keys, values = (one[first : last + 1, group] for one in (key_SGD, value_SGD))
            share = (keys @ query_QHD[row, head] * scale).softmax(0)
            output_QHD[row, head] = share @ values
    return output_QHD


def each(start_q: Tensor, start_k: Tensor) -> list[tuple[slice, slice]]:
    """The rows of every sequence."""
    bounds = [pairwise(one.tolist()) for one in (start_q, start_k)]
    return [(slice(*q), slice(*k)) for q, k in zip(*bounds, strict=True)]


def wanted(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> list[Tensor]:
    rows = [one.squeeze(0).transpose(0, 1).cpu() for one in (query, key, value)]
    parts = each(*packed("cpu")[:2])
    return [plain(rows[0][q], rows[1][k], rows[2][k], window, 0.3) for q, k in parts]


@shapes
@ways
def test_every_sequence_as_a_plain_loop(
    groups: int, window: int | None, device: str, dtype: torch.dtype, error: float
) -> None:
    query, key, value = draw(groups, device, dtype)
    assert has_kernel(query, value) == (device == "cuda" and dtype == torch.bfloat16)
    got = attend(query, key, value, packed(device), Seen(window, 0.3))
    assert got.shape == (1, query.shape[2], HEADS, WIDTH)
    expected = torch.cat(wanted(query, key, value, window))
    torch.testing.assert_close(got[0].cpu().double(), expected, atol=error, rtol=error)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@shapes
@ways
def test_what_is_not_finite_stays_in_its_sequence(
    groups: int, window: int | None, device: str, dtype: torch.dtype, error: float, bad: float
) -> None:
    """One sequence after the other: nobody gets other bits for it."""
    query, key, value = draw(groups, device, dtype)
    before = attend(query, key, value, packed(device), Seen(window, 0.3))
    for own_q, own_k in each(*packed("cpu")[:2]):
        spoilt = [one.clone() for one in (query, key, value)]
        for one, own in zip(spoilt, (own_q, own_k, own_k), strict=True):
            one[..., own, :] = bad
        after = attend(*spoilt, packed(device), Seen(window, 0.3))
        assert not after[:, own_q].isfinite().any()
        after[:, own_q] = before[:, own_q]
        assert torch.equal(after, before)


def test_dropout_drops_and_keeps_to_its_sequence() -> None:
    """The kernel has none: models that were made with it take the rows one by one."""
    query, key, value = draw(HEADS, "cpu", torch.float64)
    whole = attend(query, key, value, packed("cpu"), Seen(None, 0.3))
    torch.manual_seed(0)
    some = attend(query, key, value, packed("cpu"), Seen(None, 0.3, dropout=0.5))
    assert (some - whole).abs().max() > 0.1
    value[..., LENGTHS[0][1] :, :] = torch.nan
    assert attend(query, key, value, packed("cpu"), Seen(None, 0.3, 0.5))[:, 0].isfinite().all()


@shapes
def test_what_the_kernel_is_asked_for_is_that(groups: int, window: int | None) -> None:
    """Its arguments, read as its documentation says, in float64 on the CPU."""
    query, key, value = draw(groups, "cpu", torch.float64)
    asked = kernel_arguments(query, key, value, packed("cpu"), Seen(window, 0.3))
    left, right = asked["window_size"]
    assert right == 0, "causal"
    seen = None if left < 0 else left + 1
    got = [
        plain(asked["query"][q], asked["key"][k], asked["value"][k], seen, asked["scale"])
        for q, k in each(asked["cu_seq_q"], asked["cu_seq_k"])
    ]
    for one, other in zip(got, wanted(query, key, value, window), strict=True):
        assert torch.equal(one, other)
    assert asked["num_splits"] == 1, "else who shares the batch changes the bits"


@shapes
def test_torch_takes_what_the_kernel_is_asked_for(groups: int, window: int | None) -> None:
    """Names, shapes and heads, without a GPU."""
    query, key, value = draw(groups, "cpu", torch.bfloat16)
    asked: dict[str, Any] = kernel_arguments(query, key, value, packed("cpu"), Seen(window, None))
    meta = {n: one.to("meta") if isinstance(one, Tensor) else one for n, one in asked.items()}
    assert varlen_attn(**meta).shape == (query.shape[2], HEADS, WIDTH)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 4, 3, 20), (1, 4, 3, 264)], ids=str)
def test_heads_that_the_kernel_does_not_take_go_one_by_one(shape: tuple[int, ...]) -> None:
    query = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    start = starts([1, 2], "cuda")
    assert not has_kernel(query, query)
    got = attend(query, query, query, Packed(start, start, 2, 2), Seen(None, None))
    torch.testing.assert_close(got[:, 0], query[:, :, 0])
