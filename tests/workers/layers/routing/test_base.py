"""Every strategy and form of gates against plain Python, token by token, in float64.

Shapes: T tokens, D width, E experts, K slots.
"""

import math

import pytest
import torch

from tests.workers.layers.routing.cases import (
    ALL,
    DIM,
    EXPERTS,
    STRATEGIES,
    TOGETHER,
    compare,
    hidden,
    router,
)
from workers.config.adapter import AdapterSpec
from workers.layers.routing.base import Router, build_router


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("fields", ALL, ids=str)
def test_strategies_follow_their_definitions(fields: dict[str, str], temperature: float) -> None:
    layer = router(router_temperature=temperature, **fields).double().eval()
    inputs = hidden()
    routing = layer(inputs)
    compare(layer, routing, inputs, [False] * len(inputs))
    slots = {"top_k": 2, "top_p": EXPERTS, "switch": 1}[fields["routing"]]
    assert routing.expert_TK.shape == (12, slots + (fields["gates"] == "residual"))
    logits_TE = inputs @ layer.weight.T / temperature
    torch.testing.assert_close(routing.logits_TE, logits_TE)
    torch.testing.assert_close(routing.probs_TE, logits_TE.softmax(-1))
    assert routing.expert_TK[:, 0].tolist() == logits_TE.argmax(-1).tolist()


@pytest.mark.parametrize("routing", STRATEGIES)
def test_raw_gates_have_a_factor(routing: str) -> None:
    layer = router(routing=routing, gates="raw", gate_scale=2.5).double()
    inputs = hidden()
    compare(layer, layer(inputs), inputs, [False] * len(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fields", TOGETHER, ids=str)
def test_gates_and_voids_sum_to_one(fields: dict[str, str], dtype: torch.dtype) -> None:
    """So that experts with B = 0 leave the frozen block as it is, whatever is dropped."""
    layer = router(expert_dropout=0.5, expert_capacity=2, router_jitter=0.3, **fields).to(dtype)
    inputs = hidden(64).to(dtype)
    for mode in (True, False):
        sum_T = layer.train(mode)(inputs, sequences=16).gate_TK.sum(-1)
        torch.testing.assert_close(sum_T, torch.ones_like(sum_T))


@pytest.mark.parametrize("fields", ALL, ids=str)
def test_expert_dropout_sends_its_share_to_the_void_with_the_same_gate(
    fields: dict[str, str],
) -> None:
    layer = router(expert_dropout=0.3, expert_capacity=10_000, **fields).double()
    inputs = hidden(2000)
    kept, dropped = layer.eval()(inputs), layer.train()(inputs)
    assert torch.equal(kept.gate_TK, dropped.gate_TK)
    chosen_TK = kept.expert_TK < EXPERTS
    lost_TK = chosen_TK & (dropped.expert_TK == EXPERTS)
    assert torch.equal(dropped.expert_TK[~lost_TK], kept.expert_TK[~lost_TK])
    share = (lost_TK.sum() / chosen_TK.sum()).item()
    assert share == pytest.approx(0.3, abs=0.04)


def test_jitter_is_noise_of_its_width_on_the_input_in_training_only() -> None:
    layer = router(router_jitter=0.25).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(EXPERTS, DIM))  # Logits are the first inputs.
    inputs = hidden(4000)
    assert torch.equal(layer.eval()(inputs).logits_TE, inputs[:, :EXPERTS])
    factor_TE = layer.train()(inputs).logits_TE / inputs[:, :EXPERTS]
    assert factor_TE.min().item() == pytest.approx(0.75, abs=1e-3)
    assert factor_TE.max().item() == pytest.approx(1.25, abs=1e-3)
    assert factor_TE.std().item() == pytest.approx(0.5 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("routing", STRATEGIES)
def test_routing_is_in_float32_for_a_bfloat16_model(routing: str) -> None:
    hidden_TD = torch.randn(64, DIM).bfloat16()
    layer = router(routing=routing, router_jitter=0.1)
    for mode in (True, False):
        got = layer.train(mode).bfloat16()(hidden_TD)
        assert got.logits_TE.dtype == got.gate_TK.dtype == torch.float32
    exact = layer.float()(hidden_TD.float())
    torch.testing.assert_close(got.logits_TE, exact.logits_TE)
    torch.testing.assert_close(got.gate_TK, exact.gate_TK)


@pytest.mark.parametrize("fields", ALL, ids=str)
def test_extreme_logits_stay_finite(fields: dict[str, str]) -> None:
    layer = router(**fields)
    hidden_TD = torch.full((3, DIM), 1e4, requires_grad=True)
    routing = layer(hidden_TD)
    (routing.gate_TK * torch.rand_like(routing.gate_TK)).sum().backward()
    assert all(tensor.isfinite().all() for tensor in (routing.probs_TE, routing.gate_TK))
    assert hidden_TD.grad is not None
    assert layer.weight.grad is not None
    assert hidden_TD.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("fields", ALL, ids=str)
def test_no_tokens_are_routed_too(fields: dict[str, str]) -> None:
    routing = router(**fields).train()(torch.zeros(0, DIM))
    assert len(routing.gate_TK) == len(routing.expert_TK) == len(routing.probs_TE) == 0


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("routing", STRATEGIES)
def test_the_whole_router_is_one_graph(routing: str, train: bool) -> None:
    torch._dynamo.reset()
    layer = router(routing=routing, gates="residual", router_jitter=0.0, expert_capacity=2)
    if train:  # Noise is traced too; the comparison below is of the rest.
        noisy = router(routing=routing, router_jitter=0.1, expert_dropout=0.2).train()
        compile_whole(noisy)(torch.randn(8, DIM), 4).gate_TK.sum().backward()
    layer.train(train)
    hidden_TD = torch.randn(8, DIM)
    for got, wanted in zip(compile_whole(layer)(hidden_TD, 4), layer(hidden_TD, 4), strict=True):
        torch.testing.assert_close(got, wanted)


def compile_whole(layer: Router) -> Router:
    return torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")


def test_initial_weights_depend_on_their_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    spec = AdapterSpec(num_experts=64, router_init_std=0.5)
    layers = [build_router(64, 64, spec) for _ in range(3)]
    for layer, seed in zip(layers, (0, 0, 1), strict=True):
        layer.reset_parameters(torch.Generator().manual_seed(seed))
    first, second, other = (layer.weight for layer in layers)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.5, rel=0.05)
