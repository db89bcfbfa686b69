"""A copy of a module's weight beside a base of less precision."""

import torch
from torch import nn

from workers.layers.trained_weight import TrainedWeight


@torch.no_grad()
def test_what_is_kept_in_the_bases_precision_follows_the_weight() -> None:
    base = nn.Linear(4, 6, bias=False).to(torch.bfloat16)
    copy, given = TrainedWeight(base).eval(), torch.ones(3, 4, dtype=torch.bfloat16)
    assert copy.weight.dtype == torch.float32
    assert torch.equal(copy(base, given), base(given))
    with torch.inference_mode():
        copy(base, given)
    copy.weight.add_(1.0)
    expected = given @ copy.weight.to(torch.bfloat16).T
    assert torch.equal(copy(base, given), expected)
    assert not torch.equal(expected, base(given))


def test_only_the_copy_learns() -> None:
    base = nn.Embedding(5, 4).requires_grad_(False)
    copy = TrainedWeight(base)
    copy(base, torch.tensor([1, 1, 3])).sum().backward()
    assert base.weight.grad is None
    assert copy.weight.grad is not None
    assert copy.weight.grad.sum(1).tolist() == [0.0, 8.0, 0.0, 4.0, 0.0]
