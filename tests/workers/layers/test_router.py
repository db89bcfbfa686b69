import pytest
import torch

from workers.layers.router import TopKRouter


def router(dim: int = 6, experts: int = 5, top_k: int = 2, seed: int = 0) -> TopKRouter:
    layer = TopKRouter(dim, experts, top_k, init_std=0.5)
    layer.reset_parameters(torch.Generator().manual_seed(seed))
    return layer


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_gates_are_the_top_probabilities_renormalised(top_k: int) -> None:
    layer = router(top_k=top_k).double()
    hidden_TD = torch.randn(7, 6, dtype=torch.float64)
    routing = layer(hidden_TD)
    for token, hidden_D in enumerate(hidden_TD):
        exponents = [torch.exp(row @ hidden_D).item() for row in layer.weight]
        probs = [value / sum(exponents) for value in exponents]
        order = sorted(range(5), key=lambda expert: -probs[expert])[:top_k]
        assert routing.expert_TK[token].tolist() == order
        gates = [probs[expert] / sum(probs[best] for best in order) for expert in order]
        torch.testing.assert_close(routing.gate_TK[token].tolist(), gates, atol=1e-12, rtol=0)
        torch.testing.assert_close(routing.probs_TE[token].tolist(), probs, atol=1e-12, rtol=0)


def test_routing_is_in_float32_for_a_bfloat16_model() -> None:
    hidden_TD = torch.randn(64, 6).bfloat16()
    routing = router().bfloat16()(hidden_TD)
    assert routing.logits_TE.dtype == routing.gate_TK.dtype == torch.float32
    exact = router().bfloat16().float()(hidden_TD.float())
    torch.testing.assert_close(routing.logits_TE, exact.logits_TE)


def test_extreme_logits_stay_finite() -> None:
    layer = router()
    hidden_TD = torch.full((3, 6), 1e4, requires_grad=True)
    routing = layer(hidden_TD)
    routing.gate_TK.sum().backward()
    assert all(tensor.isfinite().all() for tensor in (routing.probs_TE, routing.gate_TK))
    assert hidden_TD.grad is not None
    assert hidden_TD.grad.isfinite().all()


def test_initial_weights_depend_on_their_generator_alone() -> None:
    torch.manual_seed(1)
    first = router(64, 64)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    second, other = router(64, 64), router(64, 64, seed=1)
    torch.manual_seed(1)
    router(3, 3)
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(1).get_state())
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert before is not None
