"""The losses against their formulas, written out by hand in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.router import Routing, TopKRouter
from workers.losses import contrastive, cross_entropy_sum, load_balance, z_loss
from workers.spec import LossSpec


def route(tokens: int, experts: int, top_k: int, seed: int = 0) -> tuple[TopKRouter, Routing]:
    router = TopKRouter(6, experts, top_k, init_std=1.0).double()
    router.reset_parameters(torch.Generator().manual_seed(seed))
    hidden = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(seed)).double()
    return router, router(hidden)


def rows(routing: Routing, chosen: Tensor) -> Routing:
    return Routing(*(tensor[chosen] for tensor in routing))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_counts_targets_only(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 11, dtype=torch.float32).to(dtype).requires_grad_()
    labels = torch.randint(0, 11, (3, 6))
    labels[0, :4] = labels[1, :] = labels[2, 5] = -100
    total, count = cross_entropy_sum(logits, labels)
    expected, targets = 0.0, 0
    for row in range(3):
        for position in range(1, 6):
            if labels[row, position] != -100:
                probs = logits[row, position - 1].double().softmax(-1)
                expected -= math.log(probs[labels[row, position]].item())
                targets += 1
    assert count.item() == targets == 6
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(total, logits)
    assert not gradient[1].any(), "a row without a target has no gradient"
    assert not gradient[:, -1].any(), "the last position predicts nothing"


def test_cross_entropy_of_no_target_is_zero() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    total, count = cross_entropy_sum(logits, torch.full((2, 3), -100))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)


def test_cross_entropy_sums_over_pieces() -> None:
    logits, labels = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    whole, count = cross_entropy_sum(logits, labels)
    parts = [cross_entropy_sum(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    assert (parts[0][1] + parts[1][1]).item() == count.item() == 16


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (5, 5)])
def test_load_balance_follows_its_formula(experts: int, top_k: int) -> None:
    _, routing = route(9, experts, top_k)
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    expected = 0.0
    for expert in range(experts):
        sent = sum(int(expert in routing.expert_TK[token]) for token in range(9) if mask[token])
        prob = sum(routing.probs_TE[token, expert].item() for token in range(9) if mask[token])
        expected += experts * (sent / 7) * (prob / 7) / top_k
    assert load_balance(routing, mask).item() == pytest.approx(expected, rel=1e-12)
    assert load_balance(rows(routing, mask)).item() == pytest.approx(expected, rel=1e-12)


def test_load_balance_of_a_uniform_and_of_a_collapsed_router() -> None:
    uniform = torch.full((8, 4), 0.25)
    spread = torch.tensor([[0, 1], [2, 3]]).repeat(4, 1)
    collapsed = torch.eye(4)[torch.zeros(8, dtype=torch.long)]
    gates = torch.full((8, 2), 0.5)
    assert load_balance(Routing(uniform.log(), uniform, spread, gates)).item() == pytest.approx(1)
    one = Routing(collapsed, collapsed, torch.zeros(8, 1, dtype=torch.long), torch.ones(8, 1))
    assert load_balance(one).item() == pytest.approx(4)


def test_load_balance_over_ranks_is_that_of_one_process() -> None:
    """Ranks with unequal numbers of real tokens: mean of values and gradients equals the whole."""
    router, routing = route(12, 4, 2)
    mask = torch.ones(12, dtype=torch.bool)
    mask[[1, 5, 6, 7]] = False
    shares = [torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)]
    sent: list[Tensor] = []
    for share in shares:
        load_balance(
            rows(routing, share), mask[share], lambda counts: (sent.append(counts), counts)[1]
        )
    total = torch.stack(sent).sum(0)
    assert not total.requires_grad
    losses = [load_balance(rows(routing, share), mask[share], lambda _: total) for share in shares]
    mean = torch.stack(losses).mean()
    whole = load_balance(routing, mask)
    torch.testing.assert_close(mean, whole)
    got, expected = (
        torch.autograd.grad(loss, router.weight, retain_graph=True)[0] for loss in (mean, whole)
    )
    torch.testing.assert_close(got, expected)
    assert expected.abs().sum() > 0


def test_z_loss_over_real_tokens() -> None:
    _, routing = route(5, 4, 2)
    mask = torch.tensor([1, 0, 1, 1, 0])
    values = [math.log(sum(math.exp(x) for x in row)) ** 2 for row in routing.logits_TE.tolist()]
    expected = (values[0] + values[2] + values[3]) / 3
    assert z_loss(routing, mask).item() == pytest.approx(expected, rel=1e-12)
    assert z_loss(routing).item() == pytest.approx(sum(values) / 5, rel=1e-12)


@pytest.mark.parametrize("padding", ["none", "all"])
def test_no_loss_without_tokens(padding: str) -> None:
    _, routing = route(5, 4, 2)
    mask = torch.zeros(5) if padding == "all" else None
    losses = [
        load_balance(routing, mask),
        z_loss(routing, mask),
        contrastive([torch.randn(5, 2, 3, requires_grad=True)], routing.expert_TK, mask),
    ]
    for loss in losses:
        assert loss.isfinite()
        assert mask is None or loss.item() == 0


def info_nce_loop(vectors: list[Tensor], labels: list[int], temperature: float) -> Tensor:
    """-1/|P(i)| sum_p log(exp(s_ip / t) / sum_{a != i} exp(s_ia / t)), mean over anchors."""
    units = [vector / vector.norm() for vector in vectors]
    losses = []
    for i, anchor in enumerate(units):
        others = [j for j in range(len(units)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            below = torch.stack([torch.exp(anchor @ units[j] / temperature) for j in others]).sum()
            terms = [
                torch.log(torch.exp(anchor @ units[j] / temperature) / below) for j in positives
            ]
            losses.append(-torch.stack(terms).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_contrastive_equals_the_loop(temperature: float) -> None:
    torch.manual_seed(0)
    _, routing = route(7, 4, 2)
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 1], dtype=torch.bool)
    terms = [torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    spec = LossSpec(contrastive_temperature=temperature)
    got = contrastive(terms, routing.expert_TK, mask, spec)
    labels = routing.expert_TK[mask].flatten().tolist()
    expected = torch.stack(
        [info_nce_loop(list(term[mask].flatten(0, 1)), labels, temperature) for term in terms]
    ).mean()
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    for one, other in zip(
        *(torch.autograd.grad(loss, terms) for loss in (got, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
        assert not one[2].any(), "padding has no gradient"


def test_contrastive_draws_a_bounded_sample_of_real_pairs() -> None:
    torch.manual_seed(0)
    _, routing = route(400, 4, 2)
    mask = torch.arange(400) % 2 == 0
    term = torch.randn(400, 2, 3, requires_grad=True)
    spec = LossSpec(contrastive_anchors=32)
    generator = torch.Generator().manual_seed(1)
    loss = contrastive([term], routing.expert_TK, mask, spec, generator)
    (gradient,) = torch.autograd.grad(loss, term)
    touched = gradient.abs().sum(-1) > 0
    assert 24 <= touched.sum() <= 32
    assert not touched[~mask].any()
    again = contrastive([term], routing.expert_TK, mask, spec, torch.Generator().manual_seed(1))
    other = contrastive([term], routing.expert_TK, mask, spec, torch.Generator().manual_seed(2))
    assert torch.equal(loss, again)
    assert not torch.equal(loss, other)


def test_contrastive_is_small_for_experts_apart_and_large_for_experts_alike() -> None:
    experts = torch.arange(4).repeat(8).view(16, 2)
    apart = functional.one_hot(experts, 4).float()
    alike = torch.ones(16, 2, 4)
    small, large = (contrastive([term], experts).item() for term in (apart, alike))
    assert small == pytest.approx(math.log(7), rel=1e-3), "seven positives share the mass"
    assert large == pytest.approx(math.log(31), rel=1e-3), "all 31 others are equal"


def test_contrastive_carries_no_gradient_to_the_gate() -> None:
    router, routing = route(6, 4, 2)
    term = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    loss = contrastive([term], routing.expert_TK)
    assert torch.autograd.grad(loss, router.weight, allow_unused=True)[0] is None
