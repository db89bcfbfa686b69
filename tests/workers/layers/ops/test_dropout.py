"""Dropout of what A matrices read, as a CPU draws it and as a GPU does."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from workers.config.adapter import AdapterSpec
from workers.layers.experts import LinearExperts
from workers.layers.ops.dropout import OwnRate, PartedRates, draw, dropped
from workers.layers.ops.input_dropout import InputDropout

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
    hidden_TI = torch.ones(3, 1000, device=device)
    place_T = torch.tensor([1, 0, 2], device=device)
    rates = PartedRates([(OwnRate(0.5), 1), (OwnRate(0.0), 1), (OwnRate(0.5), 1)], place_T)
    none, half, other = dropped(hidden_TI, rates)
    assert torch.equal(none, hidden_TI[0])
    assert float((half == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(half, other)


@devices
def test_a_seed_of_ones_own_hangs_on_nobody_else(device: str) -> None:
    hidden_TI = torch.ones(4, 1000, device=device)
    own = OwnRate(0.5, seed=7)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = dropped(hidden_TI[:2], own)
    parts = [(OwnRate(0.3, seed=8), 2), (own, 2)]
    beside = dropped(hidden_TI, PartedRates(parts, torch.arange(4, device=device)))
    assert torch.equal(beside[2:], alone)
    assert torch.equal(dropped(hidden_TI[:2], own), alone), "asked again, it is the same mask"
    assert not torch.equal(dropped(hidden_TI[:2], own.again()), alone)
    assert torch.equal(torch.get_rng_state(), before)


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


@devices
def test_who_reads_the_same_shares_a_mask_and_who_does_not_draws_one(device: str) -> None:
    hidden_BSI = torch.ones(2, 30, 40, device=device)
    first_TI, again_TI = hidden_BSI.reshape(-1, 40), hidden_BSI.reshape(-1, 40)
    inputs = InputDropout()
    assert inputs(first_TI, 0.5) is not inputs(first_TI, 0.5), "alone it shares nothing"
    with inputs.shared():
        shared_TI = inputs(first_TI, 0.5)
        assert inputs(again_TI, 0.5) is shared_TI, "another view of the same"
        assert inputs(first_TI, 0.0) is first_TI
        for other in (first_TI[:59], first_TI.clone(), first_TI.view(-1, 40).T, first_TI[1:]):
            assert inputs(other, 0.5).shape == other.shape
            assert not torch.equal(inputs(first_TI, 0.5), shared_TI), "what was read last counts"
        assert not torch.equal(inputs(first_TI, 0.25), inputs(first_TI, 0.5))
        kept_TI = inputs(first_TI, 0.5)
        first_TI.mul_(2)  # through the view, in place
        assert inputs(again_TI, 0.5).max() == 4
        assert kept_TI.max() == 2
    assert inputs(first_TI, 0.5) is not inputs(first_TI, 0.5)


def test_nothing_is_kept_behind_the_block() -> None:
    inputs, kept = InputDropout(), []

    def fail() -> None:
        with inputs.shared():
            kept.append(weakref.ref(inputs(torch.ones(4, 8), 0.5)))
            assert kept[0]() is not None
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert kept[0]() is None


def test_shared_by_tensors_without_numbers_it_knows_one_from_another() -> None:
    """On `meta` every tensor lies at address 0."""
    inputs = InputDropout()
    one_TI, other_TI = torch.empty(4, 8, device="meta"), torch.empty(4, 8, device="meta")
    with inputs.shared():
        assert inputs(one_TI, 0.5) is inputs(one_TI, 0.5)
        assert inputs(one_TI, 0.5) is not inputs(other_TI, 0.5)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("experts", [1, 4])
def test_linears_with_one_mask_are_what_the_formula_says(experts: int, dora: bool) -> None:
    """Outputs and all gradients, in float64, of three linears that read one input."""
    spec = AdapterSpec(
        experts="linear", num_experts=experts, top_k=1, rank=3, dropout=0.4, use_dora=dora
    )
    torch.manual_seed(2)
    linears = [nn.Linear(10, width).double().requires_grad_(False) for width in (10, 6, 6)]
    layers = [LinearExperts(linear, spec).double() for linear in linears]
    inputs = InputDropout()
    for layer in layers:
        layer.inputs = inputs
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
    hidden_TI = torch.randn(12, 10, dtype=torch.float64, requires_grad=True)
    weights = [one for layer in layers for one in layer.parameters()]

    def results(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        loss = torch.stack([(one.cos() ** 2).sum() for one in outputs]).sum()
        return [*outputs, *torch.autograd.grad(loss, [hidden_TI, *weights])]

    torch.manual_seed(3)
    with inputs.shared():
        got = results([layer(*of) for layer, of in _each(layers, linears, hidden_TI)])
    torch.manual_seed(3)
    factor_TI = draw(hidden_TI, 10, 0.4)
    assert factor_TI is not None
    wanted = []
    for layer, linear in zip(layers, linears, strict=True):
        layer.rate = 0.0
        # A reads the dropped input; the frozen linear and the router the whole one.
        wanted.append(_formula(layer, linear, hidden_TI, hidden_TI * factor_TI))
    for one, other in zip(got, results(wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def _each(
    layers: list[LinearExperts], linears: list[nn.Linear], hidden_TI: torch.Tensor
) -> Iterator[tuple[LinearExperts, tuple[nn.Linear, torch.Tensor]]]:
    """Each layer with what it is called with: a view of its own, as in a model."""
    for layer, linear in zip(layers, linears, strict=True):
        yield layer, (linear, hidden_TI.unsqueeze(0).reshape(-1, 10))


def _formula(
    layer: LinearExperts, linear: nn.Linear, hidden_TI: torch.Tensor, dropped_TI: torch.Tensor
) -> torch.Tensor:
    """One expert a token: y = m (W x + s B A d) + b, where m is 1 without DoRA."""
    update_EOI = layer.lora_B @ layer.lora_A
    expert_T, gate_T1 = torch.zeros(12, dtype=torch.int64), torch.ones(12, 1)
    if layer.router is not None:
        routing = layer.router(hidden_TI)
        expert_T, gate_T1 = routing.expert_TK[:, 0], routing.gate_TK
    update_TO = torch.einsum("toi,ti->to", update_EOI[expert_T], dropped_TI) * layer.scale
    frozen_TO = hidden_TI @ linear.weight.T
    if layer.lora_magnitude is None:
        return frozen_TO + linear.bias + gate_T1 * update_TO
    norm_EO = (linear.weight + layer.scale * update_EOI).norm(dim=2).detach()
    factor_TO = (layer.lora_magnitude / norm_EO)[expert_T]
    change_TO = factor_TO * (frozen_TO + update_TO) - frozen_TO
    return frozen_TO + linear.bias + gate_T1 * change_TO
