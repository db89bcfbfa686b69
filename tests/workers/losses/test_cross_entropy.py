"""Cross-entropy in pieces is torch's own."""

import math

import pytest
import torch
from torch.nn import functional

from tests.benchmarks.harness import peak_bytes
from workers.losses import cross_entropy as module
from workers.losses.cross_entropy import cross_entropy, predicted, token_losses


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


@pytest.mark.parametrize("piece_bytes", [1, 200, 10**6])
def test_weighted_it_is_torchs_times_the_weights(
    piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    torch.manual_seed(0)
    logits = (5 * torch.randn(3, 6, 11, dtype=torch.float64)).requires_grad_()
    labels, weights = torch.randint(0, 11, (3, 6)), torch.rand(3, 6, dtype=torch.float64)
    labels[0, :4] = labels[2, 5] = -100
    each = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
    ).view(3, 5)
    counted = weights[:, 1:] * (labels[:, 1:] != -100)
    expected = (each * counted).sum()
    targets, weights = predicted(labels).flatten(), predicted(weights, 0).flatten()

    def weighted(logits: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits.flatten(0, 1), targets, -100, weights)

    total = weighted(logits)
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=1e-12)
    grads = [torch.autograd.grad(3 * one, logits)[0] for one in (total, expected)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(weighted, logits)


def test_weights_cost_no_copy_of_the_logits() -> None:
    logits, target = torch.randn(512, 4096).requires_grad_(), torch.randint(0, 4096, (512,))

    def peak(weights: torch.Tensor | None) -> int:
        return peak_bytes(cross_entropy(logits, target, -100, weights).backward)

    assert peak(torch.rand(512)) < peak(None) + logits.nbytes / 10


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_counts_targets_only(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 11, dtype=torch.float32).to(dtype).requires_grad_()
    labels = torch.randint(0, 11, (3, 6))
    labels[0, :4] = labels[1, :] = labels[2, 5] = -100
    total = cross_entropy(logits.flatten(0, 1), predicted(labels).flatten(), -100)
    expected, targets = 0.0, 0
    for row in range(3):
        for position in range(1, 6):
            if labels[row, position] != -100:
                probs = logits[row, position - 1].double().softmax(-1)
                expected -= math.log(probs[labels[row, position]].item())
                targets += 1
    assert targets == 6
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(total, logits)
    assert not gradient[1].any(), "a row without a target has no gradient"
    assert not gradient[:, -1].any(), "the last position predicts nothing"


def test_each_tokens_loss_costs_no_copy_of_the_logits() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(512, 4096), torch.randint(0, 4096, (512,))
    assert peak_bytes(lambda: token_losses(logits, target, -100)) < logits.nbytes / 2


def test_cross_entropy_of_no_target_is_zero() -> None:
    logits = torch.randn(6, 5, requires_grad=True)
    total = cross_entropy(logits, torch.full((6,), -100), -100)
    total.backward()
    assert total.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
