"""Output head and cross-entropy in pieces are a linear and torch's own cross-entropy."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.benchmarks.harness import peak_bytes
from workers.losses.head_loss import PIECE_BYTES, PiecewiseHead, piece_tokens

SIZES = [1, 4, 13, 100]


def linear(weight_VD: Tensor, bias_V: Tensor, size: int) -> PiecewiseHead:
    """Soft-capped, too."""

    def logits(hidden_TD: Tensor) -> Tensor:
        return 3 * torch.tanh(functional.linear(hidden_TD, weight_VD, bias_V) / 3)

    trained = [one for one in (weight_VD, bias_V) if one.requires_grad]
    return PiecewiseHead(logits, trained, size)


def drawn(dtype: torch.dtype = torch.float64, *, learns: bool = True) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = (13, 6), (11, 6), (11,)
    hidden, *head = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
    return hidden.requires_grad_(), *(one.requires_grad_(learns) for one in head)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_that_of_all_logits(size: int, *, learns: bool, weighted: bool) -> None:
    """The loss, and the gradients of the hidden states and of a head that learns."""
    hidden, weight, bias = drawn(learns=learns)
    target = torch.randint(0, 11, (13,))
    counted = torch.rand(13, dtype=torch.float64) if weighted else torch.ones(13)
    head = linear(weight, bias, size)
    logits = head.logits(hidden)
    wanted = (functional.cross_entropy(logits, target, reduction="none") * counted).sum()
    total = head.loss(hidden, target, counted if weighted else None)
    torch.testing.assert_close(total, wanted, atol=1e-12, rtol=1e-12)
    of = [hidden, weight, bias] if learns else [hidden]
    found, expected = (torch.autograd.grad(3 * one, of) for one in (total, wanted))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda *_: head.loss(hidden, target), of)


@pytest.mark.parametrize("size", SIZES)
def test_each_targets_loss_alone(size: int) -> None:
    hidden, weight, bias = drawn()
    target = torch.randint(0, 11, (13,))
    head = linear(weight, bias, size)
    losses = head.losses(hidden, target)
    wanted = functional.cross_entropy(head.logits(hidden), target, reduction="none")
    torch.testing.assert_close(losses, wanted.detach(), atol=1e-12, rtol=1e-12)
    assert not losses.requires_grad


def test_half_precision_sums_in_single() -> None:
    """Over pieces, too: of a head that learns, in its own precision only at the end."""
    hidden, weight, bias = drawn(torch.bfloat16)
    target = torch.randint(0, 11, (13,))
    total = linear(weight, bias, 1).loss(hidden, target)
    assert total.dtype == torch.float32
    wide = [one.detach().double().requires_grad_() for one in (hidden, weight, bias)]
    wanted = linear(wide[1], wide[2], 100).loss(wide[0], target)
    assert total.item() == pytest.approx(wanted.item(), rel=0.01)
    found = torch.autograd.grad(total, [hidden, weight, bias])
    for one, other in zip(found, torch.autograd.grad(wanted, wide), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(
            one.double(), other, atol=0.03 * other.abs().max().item(), rtol=0
        )
    assert linear(weight, bias, 1).losses(hidden, target).dtype == torch.float32


def test_without_a_target_it_is_zero() -> None:
    hidden, weight, bias = drawn()
    head, none = linear(weight, bias, 4), torch.zeros(0, dtype=torch.long)
    total = head.loss(hidden[:0], none)
    total.backward()
    assert total.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert head.losses(hidden[:0], none).shape == (0,)


@pytest.mark.parametrize("learns", [False, True])
def test_memory_is_that_of_a_piece(*, learns: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(512, 16, requires_grad=True)
    weight, bias = (torch.randn(shape, requires_grad=learns) for shape in ((4096, 16), (4096,)))
    target = torch.randint(0, 4096, (512,))
    logits_bytes = 4 * 512 * 4096

    def peak(size: int) -> int:
        head = linear(weight, bias, size)
        return peak_bytes(lambda: head.loss(hidden, target).backward())

    assert peak(512) > 2 * logits_bytes
    assert peak(16) < logits_bytes / 3


def test_a_gradient_needs_no_head_in_the_backward_pass() -> None:
    """Its weights may lie in shards by then."""
    hidden, weight, bias = drawn(learns=False)
    called: list[int] = []
    plain = linear(weight, bias, 4)

    def logits(hidden_TD: Tensor) -> Tensor:
        called.append(len(hidden_TD))
        return plain.logits(hidden_TD)

    total = PiecewiseHead(logits, [], 4).loss(hidden, torch.randint(0, 11, (13,)))
    assert called == [4, 4, 4, 1]
    total.backward()
    assert called == [4, 4, 4, 1]


@pytest.mark.parametrize("device", PIECE_BYTES)
def test_pieces_are_as_few_as_fit_and_of_like_size(device: str) -> None:
    for vocabulary in (100, 49_152, 262_144, 10**9):
        most = max(PIECE_BYTES[device] // (4 * vocabulary), 1)
        for tokens in (0, 1, 7, 1000, 8192):
            size = piece_tokens(tokens, vocabulary, device)
            assert 1 <= size <= most
            starts = [*range(0, tokens, size), tokens]
            sizes = [stop - start for start, stop in pairwise(starts)]
            assert len(sizes) == -(-tokens // most)
            assert max(sizes, default=0) - min(sizes, default=0) < max(len(sizes), 1)
