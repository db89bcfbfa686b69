"""Rows of a module's weight beside a base of less precision."""

import pytest
import torch
from torch import nn

from workers.config.base import InputError
from workers.layers.trained_rows import TrainedRows


@torch.no_grad()
def test_they_are_float32_and_used_in_the_bases_precision() -> None:
    base = nn.Embedding(6, 4).to(torch.bfloat16)
    rows, given = TrainedRows(base, [4, 1]), torch.tensor([[1, 2], [4, 1]])
    assert rows.token_rows.dtype == torch.float32
    assert torch.equal(rows(base, given, base(given)), base(given))
    rows.token_rows.add_(1.0)
    output = rows(base, given, base(given))
    assert output.dtype == torch.bfloat16
    expected = base.weight.clone()
    expected[[4, 1]] = rows.token_rows.to(torch.bfloat16)
    assert torch.equal(output, expected[given])


def test_a_token_that_fills_up_batches_learns_too() -> None:
    """Whoever names it means it; torch's own embedding has no gradient of that row."""
    base = nn.Embedding(6, 4, padding_idx=1).requires_grad_(False)
    rows, given = TrainedRows(base, [4, 1]), torch.tensor([1, 2, 1])
    rows(base, given, base(given)).sum().backward()
    assert rows.token_rows.grad is not None
    assert rows.token_rows.grad.sum(1).tolist() == [0.0, 8.0]


def test_an_embedding_that_does_more_is_refused() -> None:
    class Squared(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).square()

    with pytest.raises(InputError, match="Squared computes more than rows of its weight"):
        TrainedRows(Squared(6, 4), [1])
    with pytest.raises(InputError, match="there is no token 6: the base has 6 rows"):
        TrainedRows(nn.Embedding(6, 4), [1, 6])
