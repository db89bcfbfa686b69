"""Routing strategies, DoRA and shared A in the layers, against one token and one slot at a time."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.layers.assignments import ExpertAssignments
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward, find_feed_forward
from workers.layers.mixture.chunked import chunked_mixture

ROUTING = {
    "top_k": {"top_k": 2},
    "top_p": {"routing": "top_p", "top_p": 0.6},
    "top_p_raw": {"routing": "top_p", "top_p": 0.5, "gates": "raw", "gate_scale": 2.0},
    "switch": {"routing": "switch", "expert_capacity": 2},
    "switch_raw": {"routing": "switch", "expert_capacity": 2, "gates": "raw"},
    "residual": {"top_k": 1, "gates": "residual"},
    "equal": {"top_k": 2, "gates": "equal"},
    "goat": {"top_k": 2, "goat_lr_ratio": 0.5},
}
WAYS = {"plain": (10**9, 256), "chunked": (0, 256), "grouped": (0, -1)}


@pytest.fixture(params=WAYS, autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    few, dense = WAYS[request.param]
    monkeypatch.setattr("workers.layers.mixture.select.PLAIN_PRODUCTS", few)
    monkeypatch.setattr("workers.layers.expert_bank.DENSE_RANKS", dense)
    monkeypatch.setattr("workers.layers.mixture.chunked.CHUNK_BYTES", 2000)


class Gated(nn.Module):
    """A frozen gated block with biases."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, width), nn.Linear(6, width)
        self.out = nn.Linear(width, 6)
        self.act = nn.SiLU()
        self.double().requires_grad_(False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.act(self.gate(hidden)) * self.up(hidden))


def view_of(block: Gated) -> FeedForward:
    view = find_feed_forward(block, dict(block.named_children()))
    assert view is not None
    return view


def randomise(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in layer.named_parameters():
        mean = 1.0 if "magnitude" in name else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.5, generator=generator)


def hidden_states() -> Tensor:
    return torch.randn(12, 6, dtype=torch.float64, requires_grad=True)


def expert_linear(
    linear: nn.Linear, experts: nn.Module, expert: int, spec: AdapterSpec, inputs: Tensor
) -> Tensor:
    """W x + s B A x of one expert; with DoRA its rows normalised (not by the gradient), times m."""
    lora_A = experts.lora_A[expert if len(experts.lora_A) > 1 else 0]
    update = spec.scale(linear.in_features) * experts.lora_B[expert] @ lora_A
    if experts.lora_magnitude is None:
        return linear(inputs) + update @ inputs
    weight = linear.weight + update
    factor = experts.lora_magnitude[expert] / weight.detach().norm(dim=1)
    return factor * (weight @ inputs) + linear.bias


def block_by_slots(
    block: Gated, layer: BlockExperts, spec: AdapterSpec, hidden_TD: Tensor
) -> Tensor:
    routing, outputs = layer.router(hidden_TD, 6), []
    for token, hidden_D in enumerate(hidden_TD):
        output_D = torch.zeros(6, dtype=torch.float64)
        for expert, gate in zip(
            routing.expert_TK[token].tolist(), routing.gate_TK[token], strict=True
        ):
            if expert == spec.num_experts:
                output_D = output_D + gate * block(hidden_D)
                continue

            def linear(name: str, inputs: Tensor, expert: int = expert) -> Tensor:
                frozen = block.get_submodule(name)
                if name not in layer.projections:
                    return frozen(inputs)
                return expert_linear(frozen, layer.projections[name], expert, spec, inputs)

            inner = functional.silu(linear("gate", hidden_D)) * linear("up", hidden_D)
            output_D = output_D + gate * linear("out", inner)
        outputs.append(output_D)
    return torch.stack(outputs)


def linear_by_slots(
    frozen: nn.Linear, layer: LinearExperts, spec: AdapterSpec, hidden_TI: Tensor
) -> Tensor:
    outputs = []
    routing = None if layer.router is None else layer.router(hidden_TI, 6)
    for token, hidden_I in enumerate(hidden_TI):
        output_O = frozen(hidden_I)
        slots = [(0, 1.0)]
        if routing is not None:
            slots = list(
                zip(routing.expert_TK[token].tolist(), routing.gate_TK[token], strict=True)
            )
        for expert, gate in slots:
            if expert < len(layer.lora_B):
                changed = expert_linear(frozen, layer, expert, spec, hidden_I)
                output_O = output_O + gate * (changed - frozen(hidden_I))
        outputs.append(output_O)
    return torch.stack(outputs)


def assert_same(layer: nn.Module, hidden: Tensor, got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    inputs = {**dict(layer.named_parameters()), "hidden": hidden}
    direction = torch.randn_like(got)
    for name, one, other in zip(
        inputs,
        torch.autograd.grad(got, list(inputs.values()), direction, allow_unused=True),
        torch.autograd.grad(expected, list(inputs.values()), direction, allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros_like(inputs[name])
        one, other = (zero if grad is None else grad for grad in (one, other))  # noqa: PLW2901
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("strategy", ROUTING)
def test_block_experts_with_every_strategy(strategy: str, training: bool) -> None:
    torch.manual_seed(0)
    spec = AdapterSpec(num_experts=4, rank=2, dropout=0, **ROUTING[strategy])
    block = Gated()
    view = view_of(block)
    layer = BlockExperts(view, spec, list(view.linears)).double().train(training)
    randomise(layer)
    hidden_TD = hidden_states()
    got = layer(view, hidden_TD, 6)
    assert_same(layer, hidden_TD, got, block_by_slots(block, layer, spec, hidden_TD))


@pytest.mark.parametrize("strategy", ROUTING)
def test_linear_experts_with_every_strategy(strategy: str) -> None:
    torch.manual_seed(0)
    spec = AdapterSpec(experts="linear", num_experts=4, rank=2, dropout=0, **ROUTING[strategy])
    frozen = nn.Linear(6, 8).double().requires_grad_(False)
    layer = LinearExperts(frozen, spec).double()
    randomise(layer)
    hidden_TI = hidden_states()
    got = layer(frozen, hidden_TI, 6)
    assert_same(layer, hidden_TI, got, linear_by_slots(frozen, layer, spec, hidden_TI))


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("options", [{"use_dora": True}, {"shared_a": True}])
def test_linear_experts_with_dora_and_shared_a(options: dict[str, bool], num_experts: int) -> None:
    spec = AdapterSpec(
        experts="linear", num_experts=num_experts, top_k=1, gates="residual", rank=2, **options
    )
    frozen = nn.Linear(6, 8).double().requires_grad_(False)
    layer = LinearExperts(frozen, spec).double().eval()
    randomise(layer)
    hidden_TI = hidden_states()
    got = layer(frozen, hidden_TI)
    assert_same(layer, hidden_TI, got, linear_by_slots(frozen, layer, spec, hidden_TI))


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({"use_dora": True}, ["gate", "up"]),
        ({"use_dora": True}, ["up"]),
        ({"shared_a": True}, ["gate", "up", "out"]),
        ({"use_dora": True, "routing": "top_p"}, ["gate", "up"]),
    ],
)
def test_block_experts_with_dora_and_shared_a(
    options: dict[str, object], targets: list[str]
) -> None:
    spec = AdapterSpec(num_experts=4, rank=2, **options)
    block = Gated()
    view = view_of(block)
    layer = BlockExperts(view, spec, targets).double().eval()
    randomise(layer)
    hidden_TD = hidden_states()
    got = layer(view, hidden_TD)
    assert_same(layer, hidden_TD, got, block_by_slots(block, layer, spec, hidden_TD))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"routing": "top_p"}])
def test_a_fresh_linear_layer_changes_nothing_at_all(options: dict[str, object]) -> None:
    spec = AdapterSpec(experts="linear", num_experts=3, rank=2, **options)
    frozen = nn.Linear(6, 8).requires_grad_(False)
    layer = LinearExperts(frozen, spec).eval()
    layer.reset_parameters(torch.Generator().manual_seed(0))
    hidden_TI = torch.randn(9, 6)
    assert torch.equal(layer(frozen, hidden_TI), frozen(hidden_TI))


def test_dora_starts_at_the_norms_of_the_rows_and_wants_real_weights() -> None:
    frozen = nn.Linear(6, 8)
    layer = LinearExperts(frozen, AdapterSpec(num_experts=1, top_k=1, use_dora=True))
    assert layer.lora_magnitude is not None
    torch.testing.assert_close(layer.lora_magnitude[0], frozen.weight.norm(dim=1))
    frozen.weight = nn.Parameter(frozen.weight.char(), requires_grad=False)
    with pytest.raises(InputError, match="use_dora: needs the base's weights"):
        LinearExperts(frozen, AdapterSpec(num_experts=1, top_k=1, use_dora=True))


@pytest.mark.parametrize("num_experts", [1, 3])
def test_a_bfloat16_base_sees_a_small_change_of_a_magnitude(num_experts: int) -> None:
    """1.003 is 1 in bfloat16; over many features the rounding of the output averages out."""
    spec = AdapterSpec(experts="linear", num_experts=num_experts, top_k=1, use_dora=True)
    frozen = nn.Linear(64, 512, bias=False).to(torch.bfloat16).requires_grad_(False)
    layer = LinearExperts(frozen, spec).eval()
    assert layer.lora_magnitude is not None
    with torch.no_grad():
        layer.lora_magnitude *= 1.003
    hidden_TI = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        grown = layer(frozen, hidden_TI).float().norm() / frozen(hidden_TI).float().norm()
    assert float(grown) == pytest.approx(1.003, abs=1e-3)


def test_gradients_of_gradients_are_refused() -> None:
    """The functions that are written by hand have none; nothing at all would be worse."""
    layer = LinearExperts(nn.Linear(8, 8), AdapterSpec(experts="linear", num_experts=64, rank=8))
    nn.init.normal_(layer.lora_B)
    hidden_TI = torch.randn(9, 8, requires_grad=True)
    (gradient_TI,) = torch.autograd.grad(
        layer(nn.Linear(8, 8), hidden_TI).sum(), hidden_TI, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient_TI.sum().backward()


@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU()])
def test_gradcheck_of_the_chunked_mixture(act: nn.Module, parts: tuple[bool, bool]) -> None:
    """The function that is written by hand, against finite differences."""
    torch.manual_seed(0)
    tokens, slots, experts, rank, width = 5, 2, 3, 2, 4
    block = Gated(width)
    block.act = act
    view = view_of(block)
    expert_TK = torch.tensor([[0, 1], [2, 0], [2, 3], [0, 2], [3, 0]])  # 3 is void.
    keep_TF = torch.rand(tokens, width) > 0.3

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def mixture(gate_TK: Tensor, lora_A: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        frozen, updates = tensors[:2], []
        assignments = ExpertAssignments(expert_TK, gate_TK, experts, voids=True)
        for index, adapted in enumerate(parts):
            rank_space, lora_B = tensors[2 + 2 * index : 4 + 2 * index]
            updates.append((assignments.masked(rank_space), lora_B) if adapted else (None, None))
        return chunked_mixture(view, assignments, keep_TF, lora_A, frozen, updates)

    tensors = [draw(tokens, width), draw(tokens, width)]
    tensors += [draw(tokens, slots, rank), draw(experts, width, rank)] * 2
    gate_TK, lora_A = draw(tokens, slots), draw(experts, 3, width)
    assert torch.autograd.gradcheck(mixture, (gate_TK, lora_A, *tensors))
    assert math.isfinite(sum(float(one.sum()) for one in mixture(gate_TK, lora_A, *tensors)))
