"""Cross-entropy in pieces is torch's own."""

import pytest
import torch
from torch.nn import functional

from workers.losses import cross_entropy as module
from workers.losses.cross_entropy import cross_entropy, token_losses


@pytest.mark.parametrize("piece_bytes", [1, 200, 10**6])
def test_it_is_that_of_torch(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    torch.manual_seed(0)
    logits = (5 * torch.randn(13, 11, dtype=torch.float64)).requires_grad_()
    target = torch.randint(0, 11, (13,))
    target[[0, 5, 12]] = -100
    expected = functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
    total = cross_entropy(logits, target, -100)
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=1e-12)
    grads = [torch.autograd.grad(3 * one, logits)[0] for one in (total, expected)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda one: cross_entropy(one, target, -100), (logits,))


@pytest.mark.parametrize("piece_bytes", [1, 10**6])
def test_each_tokens_loss_is_that_of_torch(
    piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    torch.manual_seed(0)
    logits = 5 * torch.randn(13, 11, dtype=torch.float64)
    target = torch.randint(0, 11, (13,))
    target[[0, 5, 12]] = -100
    expected = functional.cross_entropy(logits, target, ignore_index=-100, reduction="none")
    torch.testing.assert_close(token_losses(logits, target, -100), expected, atol=1e-12, rtol=1e-12)


def test_half_precision_sums_in_single() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 300).bfloat16().requires_grad_()
    target = torch.randint(0, 300, (64,))
    expected = functional.cross_entropy(logits.double(), target, reduction="sum")
    total = cross_entropy(logits, target, -100)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(total, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad, wanted, atol=1e-6, rtol=2**-7)


def test_no_tokens() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    total = cross_entropy(logits, torch.zeros(0, dtype=torch.int64), -100)
    total.backward()
    assert (total.item(), logits.grad is not None) == (0.0, True)
