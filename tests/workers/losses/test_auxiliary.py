"""The losses against their formulas, written out by hand in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from workers.config.adapter import AdapterSpec
from workers.config.losses import LossSpec
from workers.layers.routing.base import Router, Routing, build_router
from workers.losses.auxiliary import (
    RoutedLayer,
    contrastive,
    expert_load,
    load_balance,
    z_loss,
)
from workers.losses.info_nce import info_nce


def route(tokens: int, experts: int, seed: int = 0, **fields: object) -> tuple[Router, Routing]:
    values = {"num_experts": experts, "router_init_std": 1.0, **fields}
    router = build_router(6, experts, AdapterSpec.model_validate(values)).double()
    router.reset_parameters(torch.Generator().manual_seed(seed))
    hidden = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(seed)).double()
    return router, router(hidden)


def sent_to(experts: Tensor, num_experts: int = 4) -> Routing:
    """A routing of which only the slots' experts matter."""
    return Routing(torch.zeros(len(experts), num_experts), experts, torch.ones(experts.shape))


def rows(routing: Routing, chosen: Tensor) -> Routing:
    return Routing(*(one if one is None else one[chosen] for one in routing))


SPEC = LossSpec()
STRATEGIES = [
    (4, {"top_k": 1}),
    (4, {"top_k": 2}),
    (5, {"top_k": 5}),
    (4, {"routing": "top_p", "top_p": 0.7}),
    (4, {"routing": "switch", "expert_capacity": 2}),
    (4, {"top_k": 2, "gates": "residual", "expert_dropout": 0.4}),
]


@pytest.mark.parametrize(("experts", "fields"), STRATEGIES)
def test_load_balance_follows_its_formula(experts: int, fields: dict[str, object]) -> None:
    _, routing = route(9, experts, **fields)
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    chosen = [[e for e in row if e < experts] for row in routing.wanted_TK[mask].tolist()]
    mean_chosen = sum(map(len, chosen)) / 7
    expected = 0.0
    for expert in range(experts):
        sent = sum(expert in row for row in chosen)
        prob = sum(routing.probs_TE[token, expert].item() for token in range(9) if mask[token])
        expected += experts * (sent / 7) * (prob / 7) / mean_chosen
    assert load_balance(RoutedLayer(routing, mask), SPEC).item() == pytest.approx(
        expected, rel=1e-12
    )
    assert load_balance(RoutedLayer(rows(routing, mask)), SPEC).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_load_balance_of_a_uniform_and_of_a_collapsed_router() -> None:
    spread = torch.tensor([[0, 1], [2, 3]]).repeat(4, 1)
    assert load_balance(RoutedLayer(sent_to(spread)), SPEC).item() == pytest.approx(1)
    uneven = torch.tensor([[0, 4, 4, 4], [1, 2, 3, 4]])
    assert load_balance(RoutedLayer(sent_to(uneven)), SPEC).item() == pytest.approx(1), (
        "with voids in between"
    )
    one = sent_to(torch.zeros(8, 1, dtype=torch.long))
    collapsed = one._replace(logits_TE=100 * torch.eye(4)[torch.zeros(8, dtype=torch.long)])
    assert load_balance(RoutedLayer(collapsed), SPEC).item() == pytest.approx(4)


@pytest.mark.parametrize(("experts", "fields"), STRATEGIES)
def test_load_balance_over_ranks_is_that_of_one_process(
    experts: int, fields: dict[str, object]
) -> None:
    """Ranks with unequal numbers of real tokens: mean of values and gradients equals the whole."""
    router, routing = route(12, experts, **fields)
    mask = torch.ones(12, dtype=torch.bool)
    mask[[1, 5, 6, 7]] = False
    shares = [torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)]
    parts = [RoutedLayer(rows(routing, share), mask[share]) for share in shares]
    total = torch.stack([expert_load(part) for part in parts]).sum(0)
    assert not total.requires_grad
    losses = [load_balance(part, SPEC, total) for part in parts]
    mean = torch.stack(losses).mean()
    whole = load_balance(RoutedLayer(routing, mask), SPEC)
    torch.testing.assert_close(mean, whole)
    got, expected = (
        torch.autograd.grad(loss, router.weight, retain_graph=True)[0] for loss in (mean, whole)
    )
    torch.testing.assert_close(got, expected)
    assert expected.abs().sum() > 0


def test_z_loss_over_real_tokens() -> None:
    _, routing = route(5, 4)
    mask = torch.tensor([1, 0, 1, 1, 0])
    values = [math.log(sum(math.exp(x) for x in row)) ** 2 for row in routing.logits_TE.tolist()]
    expected = (values[0] + values[2] + values[3]) / 3
    assert z_loss(RoutedLayer(routing, mask), SPEC).item() == pytest.approx(expected, rel=1e-12)
    assert z_loss(RoutedLayer(routing), SPEC).item() == pytest.approx(sum(values) / 5, rel=1e-12)


@pytest.mark.parametrize("missing", ["nothing", "tokens", "experts"])
def test_no_loss_without_tokens(missing: str) -> None:
    router, routing = route(5, 4)
    mask = torch.zeros(5) if missing == "tokens" else None
    if missing == "experts":
        routing = routing._replace(expert_TK=torch.full((5, 2), 4))
    term = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = RoutedLayer(routing, mask, (term,))
    losses = [load_balance(layer, SPEC), contrastive(layer, SPEC)]
    for loss in (*losses, z_loss(layer, SPEC)):
        assert loss.isfinite()
    for gradient in torch.autograd.grad(sum(losses), [term, router.weight]):
        assert gradient.isfinite().all()
        assert bool(gradient.any()) == (missing == "nothing")
    if missing != "nothing":
        assert [loss.item() for loss in losses] == [0, 0]


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
@pytest.mark.parametrize(("experts", "fields"), STRATEGIES[1:])
def test_contrastive_equals_the_loop(
    experts: int, fields: dict[str, object], temperature: float
) -> None:
    torch.manual_seed(0)
    _, routing = route(9, experts, **fields)
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 1], dtype=torch.bool)
    shape = (*routing.expert_TK.shape, 3)
    terms = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    layer = RoutedLayer(routing, mask, tuple(terms))
    got = contrastive(layer, LossSpec(contrastive_temperature=temperature))
    pair_TK = mask.unsqueeze(1) & (routing.expert_TK < experts)
    labels = routing.expert_TK[pair_TK].tolist()
    expected = torch.stack(
        [info_nce_loop(list(term[pair_TK]), labels, temperature) for term in terms]
    ).mean()
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    for one, other in zip(
        *(torch.autograd.grad(loss, terms) for loss in (got, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
        assert not one[~pair_TK].any(), "padding and voids have no gradient"


def test_info_nce_has_the_gradient_of_its_value() -> None:
    torch.manual_seed(0)
    vectors_NR = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    member_NE = functional.one_hot(torch.tensor([0, 1, 0, 2, 1, 0, 3]), 4)[:, :3].bool()
    assert torch.autograd.gradcheck(lambda v: 3 * info_nce(v, member_NE, 0.2), [vectors_NR])


@pytest.mark.parametrize("temperature", [0.002, 0.07, 5.0])
def test_info_nce_is_exact_in_float32_at_any_temperature(temperature: float) -> None:
    """Vectors on both sides of the origin: similarities reach from -1 / t to 1 / t."""
    torch.manual_seed(0)
    exact_NR = (torch.randn(64, 4) * torch.tensor([1, 1e-3, 1e-3, 1e-3])).double()
    member_NE = functional.one_hot(torch.randint(0, 4, (64,)), 4).bool()
    member_NE[::9] = False
    results = []
    for vectors_NR in (exact_NR.requires_grad_(), exact_NR.detach().float().requires_grad_()):
        loss = info_nce(vectors_NR, member_NE, temperature)
        results.append((loss.double(), torch.autograd.grad(loss, vectors_NR)[0].double()))
    scale = float(results[0][1].abs().max())
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-3 * scale, rtol=1e-2)


def test_contrastive_draws_a_bounded_sample_of_real_pairs() -> None:
    torch.manual_seed(0)
    _, routing = route(400, 4)
    mask = torch.arange(400) % 2 == 0
    term = torch.randn(400, 2, 3, requires_grad=True)
    spec = LossSpec(contrastive_anchors=32)
    generator = torch.Generator().manual_seed(1)
    layer = RoutedLayer(routing, mask, (term,))
    loss = contrastive(layer, spec, generator)
    (gradient,) = torch.autograd.grad(loss, term)
    touched = gradient.abs().sum(-1) > 0
    assert 24 <= touched.sum() <= 32
    assert not touched[~mask].any()
    again = contrastive(layer, spec, torch.Generator().manual_seed(1))
    other = contrastive(layer, spec, torch.Generator().manual_seed(2))
    assert torch.equal(loss, again)
    assert not torch.equal(loss, other)


def test_contrastive_keeps_nothing_of_anchors_squared_for_the_backward_pass() -> None:
    _, routing = route(64, 4)
    saved: list[int] = []
    term = torch.randn(64, 2, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], id):
        contrastive(RoutedLayer(routing, None, (term,)), SPEC)
    assert 128 * 3 <= max(saved) <= 128 * 4, "128 anchors"


def test_contrastive_is_small_for_experts_apart_and_large_for_experts_alike() -> None:
    experts = torch.arange(4).repeat(8).view(16, 2)
    apart = functional.one_hot(experts, 4).float()
    alike = torch.ones(16, 2, 4)
    layers = [RoutedLayer(sent_to(experts), None, (term,)) for term in (apart, alike)]
    small, large = (contrastive(layer, SPEC).item() for layer in layers)
    assert small == pytest.approx(math.log(7), rel=1e-3), "seven positives share the mass"
    assert large == pytest.approx(math.log(31), rel=1e-3), "all 31 others are equal"


def test_contrastive_carries_no_gradient_to_the_gate() -> None:
    router, routing = route(6, 4)
    term = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    loss = contrastive(RoutedLayer(routing, None, (term,)), SPEC)
    assert torch.autograd.grad(loss, router.weight, allow_unused=True)[0] is None
