from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from workers.layers.ops.activations import activation_name

VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}
OWN = [nn.SiLU(), nn.ReLU(), nn.GELU(), nn.GELU("tanh"), *VALUES.values(), torch.relu]


@pytest.mark.parametrize("act", OWN, ids=range(len(OWN)))
def test_knows_torchs_own(act: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(act(x), VALUES[str(activation_name(act))](x))


@pytest.mark.parametrize("name", sorted(ACT2FN))
def test_a_name_for_one_of_transformers_is_right(name: str) -> None:
    act = ACT2FN[name]
    known = activation_name(act)
    if known is not None:
        x = torch.linspace(-4, 4, 101)
        torch.testing.assert_close(act(x), VALUES[known](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_knows_those_that_models_use(name: str) -> None:
    assert activation_name(ACT2FN[name]) is not None


def test_does_not_guess() -> None:
    class SiLU(nn.Module):
        """Not torch's."""

    assert activation_name(SiLU()) is None
    assert activation_name(torch.tanh) is None
    assert activation_name(nn.LeakyReLU()) is None
