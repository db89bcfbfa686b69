"""The stacked layers against plain loops over tokens and experts, by the papers' formulas alone."""

import math
import random
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.config.adapter import AdapterSpec
from workers.layers.experts import BlockExperts, LinearExperts, LoraExperts, Recorder
from workers.layers.feed_forward import FeedForward, find_feed_forward

FORMS = ("gated", "fused", "plain")
WAYS = {
    "plain": {"mixture.select.PLAIN_PRODUCTS": 10**9},
    "sorted": {"mixture.select.PLAIN_PRODUCTS": 0},
    "chunks": {
        "mixture.select.PLAIN_PRODUCTS": 0,
        "mixture.chunked.CHUNK_BYTES": 0,
        "mixture.chunked.CHUNK_ROWS": 3,
    },
    "grouped": {"mixture.select.PLAIN_PRODUCTS": 0, "expert_bank.DENSE_RANKS": -1},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of computing the layers, whatever the sizes."""
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(f"workers.layers.{name}", value)
    return str(request.param)


class Block(nn.Module):
    """A frozen feed-forward block of each form, with biases."""

    def __init__(self, form: str, width: int, feed_forward: int) -> None:
        super().__init__()
        self.form = form
        self.act = nn.SiLU() if form != "plain" else nn.GELU()
        if form == "gated":
            self.gate = nn.Linear(width, feed_forward)
            self.up = nn.Linear(width, feed_forward)
        else:
            self.fc = nn.Linear(width, feed_forward * (2 if form == "fused" else 1))
        self.out = nn.Linear(feed_forward, width)
        self.requires_grad_(False)

    def activate(self, project: Callable[[str], Tensor]) -> Tensor:
        if self.form == "gated":
            return self.act(project("gate")) * project("up")
        if self.form == "fused":
            gate, up = project("fc").chunk(2, dim=-1)
            return self.act(gate) * up
        return self.act(project("fc"))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.activate(lambda name: self.get_submodule(name)(hidden)))


def view_of(block: Block) -> FeedForward:
    view = find_feed_forward(block, dict(block.named_children()))
    assert view is not None
    return view


def chosen_experts(weight_ED: Tensor, hidden_D: Tensor, top_k: int) -> list[tuple[int, Tensor]]:
    weight_E = torch.exp(weight_ED @ hidden_D.to(weight_ED.dtype))
    probs_E = weight_E / weight_E.sum()
    order = sorted(range(len(probs_E)), key=lambda expert: -probs_E[expert].item())[:top_k]
    total = torch.stack([probs_E[expert] for expert in order]).sum()
    return [(expert, probs_E[expert] / total) for expert in order]


def block_loop(block: Block, layer: BlockExperts, spec: AdapterSpec, hidden_TD: Tensor) -> Tensor:
    """y = sum_e g_e (W2 h_e + s B2_e A2_e h_e), one token and one expert at a time."""
    weights = dict(layer.named_parameters())

    def linear(name: str, expert: int, inputs: Tensor) -> Tensor:
        output = block.get_submodule(name)(inputs)
        if f"projections.{name}.lora_A" in weights:
            a_RI = weights[f"projections.{name}.lora_A"][expert]
            b_OR = weights[f"projections.{name}.lora_B"][expert]
            output = output + spec.scale(len(inputs)) * (
                b_OR.to(inputs) @ (a_RI.to(inputs) @ inputs)
            )
        return output

    rows = []
    for hidden_D in hidden_TD:
        output_D = torch.zeros_like(hidden_D)
        for expert, gate in chosen_experts(weights["router.weight"], hidden_D, spec.top_k):
            hidden_F = block.activate(lambda name, e=expert, x=hidden_D: linear(name, e, x))
            output_D = output_D + gate * linear("out", expert, hidden_F)
        rows.append(output_D)
    return torch.stack(rows)


def linear_loop(
    frozen: nn.Linear, layer: LinearExperts, spec: AdapterSpec, hidden_TI: Tensor
) -> Tensor:
    """y = W x + s sum_e g_e B_e A_e x."""
    rows = []
    for hidden_I in hidden_TI:
        output_O = frozen(hidden_I)
        chosen = [(0, torch.ones(()))]
        if spec.num_experts > 1:
            assert layer.router is not None
            chosen = chosen_experts(layer.router.weight, hidden_I, spec.top_k)
        for expert, gate in chosen:
            update_O = layer.lora_B[expert] @ (layer.lora_A[expert] @ hidden_I)
            output_O = output_O + spec.scale(len(hidden_I)) * gate * update_O
        rows.append(output_O)
    return torch.stack(rows)


def test_goats_first_step_is_that_of_full_fine_tuning() -> None:
    """In expectation over A; 400 draws leave a few per cent."""
    frozen = nn.Linear(24, 5, bias=False).double()
    spec = AdapterSpec(num_experts=1, top_k=1, rank=4, dropout=0, goat_lr_ratio=0.3)
    hidden_TI = torch.randn(7, 24, dtype=torch.float64)
    frozen(hidden_TI).square().sum().backward()
    assert frozen.weight.grad is not None
    draws = []
    for seed in range(400):
        layer = LinearExperts(frozen.requires_grad_(False), spec).double()
        layer.reset_parameters(torch.Generator().manual_seed(seed))
        layer(frozen, hidden_TI).square().sum().backward()
        step_OR = layer.lora_B.grad[0]
        draws.append(layer.scale * step_OR @ layer.lora_A[0].detach())
    mean_OI = torch.stack(draws).mean(0)
    error = (mean_OI - 0.3 * frozen.weight.grad).norm() / (0.3 * frozen.weight.grad).norm()
    assert error < 0.2


def randomise(layer: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)


def assert_same(layer: nn.Module, hidden_TD: Tensor, got: Tensor, expected: Tensor) -> None:
    """Equal outputs to 1e-10, and equal gradients of every parameter and the input to 1e-9."""
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    inputs = {**dict(layer.named_parameters()), "hidden": hidden_TD}
    direction = torch.randn_like(got)
    gradients = [
        torch.autograd.grad(output, list(inputs.values()), direction, allow_unused=True)
        for output in (got, expected)
    ]
    for name, one, other in zip(inputs, *gradients, strict=True):
        assert one is not None, f"{name} has no gradient: data-parallel training would hang on it"
        torch.testing.assert_close(
            one, torch.zeros_like(one) if other is None else other, atol=1e-9, rtol=1e-9, msg=name
        )


def random_spec(seed: int, **fixed: object) -> AdapterSpec:
    draw = random.Random(seed)
    experts = draw.randint(2, 6)
    values = {
        "num_experts": experts,
        "top_k": draw.randint(1, experts),
        "rank": draw.randint(1, 4),
        "alpha": draw.choice([1.0, 8.0]),
        "use_rslora": draw.random() < 0.5,
        "dropout": 0.0,
    }
    return AdapterSpec.model_validate(values | fixed)


def random_input(seed: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = random.Random(seed).choice([1, 2, 9])
    return torch.randn(tokens, width, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(8))
def test_block_experts_equal_the_loop(form: str, seed: int, way: str) -> None:
    draw, spec = random.Random(seed), random_spec(seed)
    block = Block(form, draw.randint(3, 8), draw.randint(3, 9)).double()
    view = view_of(block)
    layer = BlockExperts(view, spec, list(view.linears)).double()
    randomise(layer, seed)
    hidden_TD = random_input(seed, view.width)
    assert_same(
        layer,
        hidden_TD,
        layer(view, hidden_TD),
        block_loop(block, layer, spec, hidden_TD),
    )


@pytest.mark.parametrize("top_k", range(1, 6))
def test_block_experts_for_every_top_k(top_k: int, way: str) -> None:
    spec = random_spec(1, num_experts=5, top_k=top_k)
    block = Block("gated", 6, 10).double()
    view = view_of(block)
    layer = BlockExperts(view, spec, list(view.linears)).double()
    randomise(layer, top_k)
    hidden_TD = random_input(1, 6)
    assert_same(
        layer,
        hidden_TD,
        layer(view, hidden_TD),
        block_loop(block, layer, spec, hidden_TD),
    )


@pytest.mark.parametrize(
    "targets", [("gate",), ("up",), ("out",), ("gate", "up"), ("up", "out"), ("gate", "out")]
)
def test_some_linears_of_a_block(targets: tuple[str, ...], way: str) -> None:
    spec = random_spec(3, num_experts=4, top_k=2)
    block = Block("gated", 5, 7).double()
    view = view_of(block)
    layer = BlockExperts(view, spec, targets).double()
    randomise(layer, 3)
    hidden_TD = random_input(2, 5)
    assert set(layer.projections) == set(targets)
    terms: list[Tensor] = []
    layer.recorder = Recorder(lambda _routing, rank_space, _tokens: terms.extend(rank_space))
    got = layer(view, hidden_TD)
    assert_same(layer, hidden_TD, got, block_loop(block, layer, spec, hidden_TD))
    assert len(terms) == max(1, len(set(targets) - {"out"}))
    assert all(term.shape == (len(hidden_TD), 2, spec.rank) for term in terms)


def test_experts_that_receive_no_token(way: str) -> None:
    spec = random_spec(0, num_experts=6, top_k=2)
    block = Block("gated", 5, 7).double()
    view = view_of(block)
    layer = BlockExperts(view, spec, list(view.linears)).double()
    randomise(layer, 0)
    hidden_TD = random_input(2, 5).detach().abs().requires_grad_()
    with torch.no_grad():
        layer.router.weight[2:] = -5.0
        layer.router.weight[:2].abs_()
    assert set(layer.router(hidden_TD).expert_TK.unique().tolist()) == {0, 1}
    assert_same(layer, hidden_TD, layer(view, hidden_TD), block_loop(block, layer, spec, hidden_TD))
    layer(view, hidden_TD).sum().backward()
    for experts in layer.projections.values():
        for parameter in experts.parameters():
            assert parameter.grad is not None
            assert parameter.grad[:2].abs().sum() > 0
            assert parameter.grad[2:].abs().sum() == 0


@pytest.mark.parametrize("seed", range(8))
def test_linear_experts_equal_the_loop(seed: int, way: str) -> None:
    draw = random.Random(seed)
    spec = random_spec(seed, experts="linear")
    frozen = nn.Linear(draw.randint(2, 8), draw.randint(2, 8)).double().requires_grad_(False)
    layer = LinearExperts(frozen, spec).double()
    randomise(layer, seed)
    hidden_TI = random_input(seed, frozen.in_features)
    got = layer(frozen, hidden_TI)
    assert_same(layer, hidden_TI, got, linear_loop(frozen, layer, spec, hidden_TI))


def test_one_expert_is_plain_lora_without_a_router() -> None:
    spec = random_spec(0, num_experts=1, top_k=1)
    frozen = nn.Linear(6, 4).double().requires_grad_(False)
    layer = LinearExperts(frozen, spec).double()
    randomise(layer, 0)
    hidden_TI = random_input(2, 6)
    got = layer(frozen, hidden_TI)
    assert [name for name, _ in layer.named_parameters()] == ["lora_A", "lora_B"]
    assert layer.router is None
    assert_same(layer, hidden_TI, got, linear_loop(frozen, layer, spec, hidden_TI))


@pytest.mark.parametrize("form", FORMS)
def test_a_bfloat16_base_is_as_exact_as_the_loop(form: str) -> None:
    """Against float32, the stacked layer rounds no worse than the plain loop in bfloat16 does."""
    torch.manual_seed(0)
    spec = AdapterSpec(num_experts=4, top_k=2, rank=4, alpha=8, dropout=0)
    block = Block(form, 64, 96).bfloat16()
    view = view_of(block)
    layer = BlockExperts(view, spec, list(view.linears))
    randomise(layer, 0)
    hidden_TD, direction = torch.randn(32, 64).bfloat16(), torch.randn(32, 64)

    def outcome(output_TD: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(
            output_TD, list(layer.parameters()), direction.to(output_TD)
        )
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        return [output_TD.float(), *gradients]

    got = layer(view, hidden_TD)
    assert got.dtype == torch.bfloat16
    stacked = outcome(got)
    loop = outcome(block_loop(block, layer, spec, hidden_TD))
    exact = outcome(block_loop(block.float(), layer, spec, hidden_TD.float()))
    for one, other, truth in zip(stacked, loop, exact, strict=True):
        assert (one - truth).norm() <= 1.5 * (other - truth).norm()
        assert (one - truth).norm() <= 0.1 * truth.norm()


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    spec = AdapterSpec(num_experts=4, top_k=2, rank=4, dropout=0.5)
    block = Block("gated", 16, 24)
    view = view_of(block)
    layer = BlockExperts(view, spec, list(view.linears))
    frozen = nn.Linear(16, 16)
    linear = LinearExperts(frozen, spec)
    randomise(layer, 0)
    randomise(linear, 0)
    hidden_TD = torch.randn(8, 16)
    for run in (
        lambda: layer(view, hidden_TD),
        lambda: linear(frozen, hidden_TD),
    ):
        layer.train(), linear.train()
        assert not torch.equal(run(), run())
        layer.eval(), linear.eval()
        assert torch.equal(run(), run())


def test_dropout_keeps_the_expectation() -> None:
    """The mean over many draws approaches the output without dropout (plain LoRA: it is linear)."""
    torch.manual_seed(0)
    frozen = nn.Linear(16, 3)
    layer = LinearExperts(frozen, AdapterSpec(num_experts=1, top_k=1, dropout=0.3))
    randomise(layer, 0)
    hidden_TI = torch.randn(1, 16)
    mean = layer(frozen, hidden_TI.expand(40000, -1)).mean(0)
    expected = layer.eval()(frozen, hidden_TI)[0]
    torch.testing.assert_close(mean, expected, atol=0.03 * expected.abs().max().item(), rtol=0)


def test_initial_weights() -> None:
    """A is Kaiming-uniform(sqrt 5) over each expert's own inputs: U(-1/sqrt(I), 1/sqrt(I))."""
    block = Block("gated", 100, 144)
    spec = AdapterSpec(num_experts=8, rank=16)
    layer = BlockExperts(view_of(block), spec, ["gate", "out"])
    layer.reset_parameters(torch.Generator().manual_seed(0))
    for name, inputs in (("gate", 100), ("out", 144)):
        lora_A = layer.get_parameter(f"projections.{name}.lora_A")
        assert lora_A.shape == (8, 16, inputs)
        for lora_A_RI in lora_A:
            bound = 1 / math.sqrt(inputs)
            assert lora_A_RI.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert lora_A_RI.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.get_parameter(f"projections.{name}.lora_B").any()
    again = BlockExperts(view_of(block), spec, ["gate", "out"])
    torch.manual_seed(99)
    again.reset_parameters(torch.Generator().manual_seed(0))
    for one, other in zip(layer.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_frozen_outer_linear_runs_once_for_each_token() -> None:
    block = Block("gated", 8, 12)
    view = view_of(block)
    layer = BlockExperts(view, AdapterSpec(num_experts=4, top_k=3), list(view.linears))
    rows = dict.fromkeys(("gate", "up", "out"), 0)

    def count(name: str, inputs: Tensor) -> None:
        rows[name] += functional.linear(inputs, torch.zeros(1, inputs.shape[-1])).numel()

    for name in rows:
        block.get_submodule(name).register_forward_hook(
            lambda _module, inputs, _output, name=name: count(name, inputs[0])
        )
    layer(view, torch.randn(10, 8))
    assert rows == {"gate": 10, "up": 10, "out": 10}


def test_training_keeps_nothing_that_was_made_to_serve() -> None:
    linear = nn.Linear(6, 10).requires_grad_(False)
    experts = LoraExperts(linear, AdapterSpec(num_experts=4, rank=3)).eval()
    with torch.no_grad():
        made = weakref.ref(experts.bank(linear, torch.float32).stacked_B_SO)
        assert made() is experts.bank(linear, torch.float32).stacked_B_SO
    experts.train()
    assert made() is None
