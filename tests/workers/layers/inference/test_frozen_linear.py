"""The quicker order gives what the linear gives, and leaves alone what is more than a linear."""

import pytest
import torch
from torch import nn

from workers.layers.inference.frozen_linear import ROWS, frozen_product


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, ROWS.start, 50, ROWS.stop - 1, ROWS.stop])
@torch.no_grad()
def test_it_is_what_the_linear_gives(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear, rows_TI = nn.Linear(24, 40, bias=bias), torch.randn(rows, 24)
    output_TO = frozen_product(linear, rows_TI)
    expected = nn.functional.linear(
        rows_TI.double(),
        linear.weight.double(),
        None if linear.bias is None else linear.bias.double(),
    )
    torch.testing.assert_close(output_TO.double(), expected, atol=1e-5, rtol=1e-5)
    assert output_TO.is_contiguous()


@pytest.mark.parametrize("how", ["hook", "forward", "class"])
@torch.no_grad()
def test_what_somebody_made_of_the_linear_counts(how: str) -> None:
    class Twice(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    linear = Twice(24, 40) if how == "class" else nn.Linear(24, 40)
    plain = linear.forward
    if how == "hook":
        linear.register_forward_hook(lambda *called: 2 * called[2])
    elif how == "forward":
        linear.forward = lambda input: 2 * plain(input)
    rows_TI = torch.randn(8, 24)
    expected = 2 * nn.functional.linear(rows_TI, linear.weight, linear.bias)
    torch.testing.assert_close(frozen_product(linear, rows_TI), expected)


@torch.no_grad()
def test_a_weight_that_a_hook_brings_is_not_asked_for_before_it() -> None:
    """As of ZeRO-3: who reads one outside its linear has all workers gather it."""
    linear = nn.Linear(24, 40)
    weight = linear.weight
    del linear.weight
    linear.register_forward_pre_hook(lambda *called: setattr(called[0], "weight", weight))
    rows_TI = torch.randn(8, 24)
    output_TO = frozen_product(linear, rows_TI)
    torch.testing.assert_close(
        output_TO, nn.functional.linear(rows_TI, weight, linear.bias), atol=0, rtol=0
    )


def test_gradients_reach_the_rows() -> None:
    linear, rows_TI = nn.Linear(24, 40), torch.randn(8, 24, requires_grad=True)
    frozen_product(linear, rows_TI).sum().backward()
    assert rows_TI.grad is not None
