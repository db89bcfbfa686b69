"""Dropout of what A matrices read, as a CPU draws it and as a GPU does."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workers.layers.ops.dropout import draw, dropped

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@devices
def test_without_a_rate_nothing_is_done(device: str) -> None:
    hidden_TI = torch.ones(2, 4, device=device)
    assert dropped(hidden_TI, 0.0) is hidden_TI
    assert draw(hidden_TI, 4, 0.0) is None


@devices
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_a_share_is_dropped_and_the_mean_kept(device: str, rate: float) -> None:
    hidden_TI = torch.full((400, 250), 3.0, device=device, requires_grad=True)
    torch.manual_seed(1)
    got_TI = dropped(hidden_TI, rate)
    torch.manual_seed(1)
    assert torch.equal(dropped(hidden_TI, rate), got_TI), "a seed makes it again"
    assert not torch.equal(dropped(hidden_TI, rate), got_TI)
    assert float((got_TI == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    assert float(got_TI.detach().mean()) == pytest.approx(3.0, abs=0.05)
    (grad_TI,) = torch.autograd.grad(got_TI.sum(), hidden_TI)
    torch.testing.assert_close(grad_TI * 3, got_TI.detach())  # the same mask on the way back
    factor_TI = draw(hidden_TI, 30, rate)
    assert factor_TI is not None
    assert factor_TI.shape == (400, 30)
    assert float(factor_TI.mean()) == pytest.approx(1.0, abs=0.05)


@devices
def test_a_rate_may_be_each_tokens_own(device: str) -> None:
    hidden_TI = torch.ones(2, 1000, device=device)
    none, half = dropped(hidden_TI, torch.tensor([0.0, 0.5], device=device))
    assert torch.equal(none, hidden_TI[0])
    assert float((half == 0).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.gpu
def test_a_gpu_does_it_in_one_kernel() -> None:
    called: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(
            self, operation: Any, types: object, arguments: Any = (), options: Any = None
        ) -> Any:
            called.append(str(operation))
            return operation(*arguments, **(options or {}))

    with Calls():
        dropped(torch.ones(4, 8, device="cuda", dtype=torch.bfloat16), 0.1)
    assert [one for one in called if "ones" not in one] == ["aten.native_dropout.default"]
