"""LoRA on a base's own stacked experts, in float64, against a loop over tokens with W + s B A."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.adapted_stack import AdaptedStack
from workers.injection.adapter import Adapter
from workers.injection.inject import inject, row_map
from workers.layers.stack_lora import StackLora

Build = Callable[..., nn.Module]

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HEADS = {"head_dim": 8, "num_key_value_heads": 2}
FAMILIES = {
    "mixtral": {"num_local_experts": 4, **HEADS},
    "qwen3_moe": {**EXPERTS, **HEADS},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **HEADS},
}
BOTH = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
SHAPE = {"num_experts": 1, "top_k": 1, "rank": 3, "alpha": 5.0, "dropout": 0.0}


def spec(**changes: object) -> AdapterSpec:
    values = {**SHAPE, "target_modules": (), "target_parameters": BOTH, **changes}
    return AdapterSpec.model_validate(values)


def base(build: Build, family: str) -> nn.Module:
    """In float64, its biases random too."""
    model = build(family, **FAMILIES[family]).double()
    model.set_experts_implementation("eager")  # torch's grouped products know no float64
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3 or name.endswith("bias"):
                parameter.normal_(std=0.2, generator=generator)
    return model


def attach(model: nn.Module, seed: int = 0, slot: str = "default", **changes: object) -> Adapter:
    adapter = inject(model, spec(**changes), slot=slot)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapter.layers:
        layer.double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapter


def ids(rows: int = 3, length: int = 5) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def weights(module: AdaptedStack, layer: StackLora) -> dict[str, Tensor]:
    """W_e + s B_e A_e of every expert, [E, O, I]."""
    found = {}
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(module.base, name)
        found[name] = weight.transpose(1, 2) if module.stack.is_transposed else weight
        if name in layer.projections:
            pair = layer.projections[name]
            found[name] = found[name] + layer.scales[name] * pair.lora_B @ pair.lora_A
    return found


def looped(module: AdaptedStack, layer: StackLora, hidden: Tensor, chosen: Tensor, gates: Tensor):
    """Token by token, choice by choice."""
    merged, experts = weights(module, layer), module.base
    rows = []
    for x, own, gate in zip(hidden, chosen, gates, strict=True):
        y = torch.zeros_like(x)
        for e, g in zip(own, gate, strict=True):
            inner = merged["gate_up_proj"][e] @ x
            if module.stack.is_transposed:  # gpt-oss
                inner = inner + experts.gate_up_proj_bias[e]
            h = experts._apply_gate(inner)
            out = merged["down_proj"][e] @ h
            if module.stack.is_transposed:
                out = out + experts.down_proj_bias[e]
            y = y + g * out
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("rank", [3, 40], ids=["all experts at once", "grouped"])
@pytest.mark.parametrize("targets", [BOTH, BOTH[:1], BOTH[1:]], ids=["both", "inner", "outer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_a_loop_with_gradients(
    family: str, targets: tuple[str, ...], rank: int, build_model: Build
) -> None:
    adapter = attach(base(build_model, family), target_parameters=targets, rank=rank)
    module = adapter.modules["layers.1.mlp.experts"]
    layer = adapter.layers[1]
    assert isinstance(module, AdaptedStack)
    assert isinstance(layer, StackLora)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(9, 32, generator=generator, dtype=torch.float64).requires_grad_()
    # The last expert has no token.
    chosen = torch.stack([torch.randperm(3, generator=generator)[:2] for _ in range(9)])
    gates = torch.rand(9, 2, generator=generator, dtype=torch.float64).requires_grad_()
    toward = torch.randn(9, 32, generator=generator, dtype=torch.float64)
    trained = [hidden, gates, *layer.parameters()]

    expected = looped(module, layer, hidden, chosen, gates)
    wanted = torch.autograd.grad((expected * toward).sum(), trained)
    output = module(hidden, chosen, gates)
    found = torch.autograd.grad((output * toward).sum(), trained)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-10)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)
    with torch.inference_mode():
        torch.testing.assert_close(module(hidden, chosen, gates), expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_one_changes_nothing_and_leaves_nothing(family: str, build_model: Build) -> None:
    model = base(build_model, family)
    bare = model(ids()).logits
    adapter = inject(model, spec(target_modules="all-linear"))
    assert {name.rpartition(".")[0] for name in adapter.state_dict()} >= {
        f"layers.{i}.{name}" for i in (0, 1) for name in BOTH
    }
    torch.testing.assert_close(model(ids()).logits, bare, atol=1e-12, rtol=0)
    adapter.remove()
    assert torch.equal(model(ids()).logits, bare)
    assert not any(isinstance(module, AdaptedStack) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_may_mix_adapters(family: str, build_model: Build) -> None:
    """Adapters of other ranks and other weights, one that lies on linears too, and the bare base:
    each row gets what it gets alone."""
    specs: dict[str | None, dict[str, object]] = {
        "both": {},
        "inner": {"target_parameters": BOTH[:1], "rank": 5, "alpha": 3.0},
        "outer": {"target_parameters": ".*1.mlp.experts.down_proj", "target_modules": ("q_proj",)},
        "linears": {"target_parameters": (), "target_modules": "all-linear"},
    }
    order = ["both", None, "outer", "inner", "linears", "both"]
    rows, expected = ids(len(order)), []
    for slot in order:
        model = base(build_model, family)
        if slot:
            attach(model, list(specs).index(slot), **specs[slot])
        expected.append(model(rows).logits[len(expected)])

    model = base(build_model, family)
    for seed, slot in enumerate(specs):
        attach(model, seed, slot, **specs[slot])
    by_token = [slot for slot in order for _ in range(rows.shape[1])]
    for slots in (order, by_token):
        with row_map(model).assign(slots):
            found = model(rows).logits
            with torch.inference_mode():
                served = model(rows).logits
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-10, rtol=0)
        torch.testing.assert_close(served, torch.stack(expected), atol=1e-10, rtol=0)


def test_rows_of_others_are_not_met(build_model: Build) -> None:
    """Numbers that are not finite stay in their own adapter's rows."""
    model = base(build_model, "mixtral")
    attach(model, slot="good")
    broken = attach(model, slot="broken")
    for parameter in broken.parameters():
        parameter.data.fill_(torch.inf)
    with row_map(model).everywhere("good"):
        expected = model(ids()).logits
    with row_map(model).assign(["good", "broken", "good"]):
        found = model(ids()).logits
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], atol=1e-12, rtol=0)


def test_dropout_is_for_training_only(build_model: Build) -> None:
    model = base(build_model, "qwen3_moe")
    attach(model, dropout=0.5)
    evaluated = model(ids()).logits
    assert torch.equal(model(ids()).logits, evaluated)
    torch.manual_seed(0)
    first, second = model.train()(ids()).logits, model(ids()).logits
    assert not torch.allclose(first, second)
    assert torch.equal(model.eval()(ids()).logits, evaluated)


def test_bfloat16_stays_near(build_model: Build) -> None:
    """Weights of 16 bits with float32 pairs beside them, under autocast too."""
    model = base(build_model, "mixtral").float()
    attach(model)
    for module in model.modules():
        if isinstance(module, AdaptedStack):
            module.adapters.float()
    expected = model(ids()).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(ids()).logits - expected).norm() < 0.05 * expected.norm()
    lower = base(build_model, "mixtral").bfloat16()
    attach(lower)
    assert (lower(ids()).logits.float() - expected).norm() < 0.05 * expected.norm()


REFUSED = {
    "a dense base": ("llama", {}, "no stacked experts that LoRA fits"),
    "an unknown name": (
        "mixtral",
        {"target_parameters": ("experts.w1",)},
        "target_parameters: experts.w1 is no stacked weight; there are "
        "['mlp.experts.down_proj', 'mlp.experts.gate_up_proj']",
    ),
    "a pattern of none": (
        "mixtral",
        {"target_parameters": "x.*"},
        "x.* matches the path of no stacked weight",
    ),
    "a bias": (
        "gpt_oss",
        {"target_parameters": ("down_proj_bias",)},
        "target_parameters: down_proj_bias is no stacked weight",
    ),
    "an unknown linear": ("mixtral", {"target_modules": ("w1",)}, "no linear is called w1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name: str, build_model: Build) -> None:
    family, changes, why = REFUSED[name]
    model = build_model(family, **FAMILIES.get(family, {}))
    with pytest.raises(InputError) as refused:
        inject(model, spec(**changes))
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
