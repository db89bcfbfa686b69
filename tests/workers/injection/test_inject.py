from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.config.losses import LossSpec
from workers.injection.adapter import Adapter, LayerRecord
from workers.injection.inject import inject, row_map
from workers.injection.wrapper import AdaptedModule
from workers.losses.auxiliary import RoutedLayer, contrastive, load_balance

Build = Callable[[str], nn.Module]
SPECS = [
    AdapterSpec(num_experts=4, top_k=2, rank=3),
    AdapterSpec(experts="linear", num_experts=4, top_k=2, rank=3),
    AdapterSpec(num_experts=1, top_k=1, rank=3),
]


def ids(rows: int = 3, length: int = 6) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def randomise(adapter: Adapter) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("spec", SPECS, ids=["block", "linear", "plain"])
def test_a_fresh_adapter_changes_nothing_and_goes_without_a_trace(
    spec: AdapterSpec, family: str, build_model: Build
) -> None:
    model = build_model(family)
    modules = dict(model.named_modules())
    bare = model(ids()).logits
    adapter = inject(model, spec)
    torch.testing.assert_close(model(ids()).logits, bare, atol=2e-6, rtol=0)
    randomise(adapter)
    assert (model(ids()).logits - bare).abs().max() > 0.01
    adapter.remove()
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(ids()).logits, bare)
    adapter.remove()
    inject(model, spec)


@pytest.mark.parametrize("spec", SPECS, ids=["block", "linear", "plain"])
def test_every_adapter_weight_and_no_other_is_trained(
    spec: AdapterSpec, family: str, build_model: Build
) -> None:
    model = build_model(family).train()
    adapter = inject(model, spec)
    randomise(adapter)
    model(ids()).logits.square().mean().backward()
    trained = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    assert trained == {id(parameter) for parameter in adapter.parameters()}
    assert adapter.num_parameters() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())


def test_canonical_names_and_shapes(build_model: Build) -> None:
    shapes = {
        "mlp.router.weight": (4, 32),
        "mlp.gate_proj.lora_A": (4, 3, 32),
        "mlp.gate_proj.lora_B": (4, 48, 3),
        "mlp.up_proj.lora_A": (4, 3, 32),
        "mlp.up_proj.lora_B": (4, 48, 3),
        "mlp.down_proj.lora_A": (4, 3, 48),
        "mlp.down_proj.lora_B": (4, 32, 3),
    }
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        shapes |= {f"self_attn.{name}.lora_A": (1, 3, 32), f"self_attn.{name}.lora_B": (1, 32, 3)}
    state = inject(build_model("llama"), SPECS[0]).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        f"layers.{layer}.{name}": shape for layer in (0, 1) for name, shape in shapes.items()
    }
    state = inject(build_model("gpt2"), SPECS[1]).state_dict()
    assert state["layers.1.attn.c_attn.router.weight"].shape == (4, 32)
    assert state["layers.1.attn.c_attn.lora_B"].shape == (4, 96, 3)
    assert state["layers.1.mlp.c_proj.lora_A"].shape == (4, 3, 128)


def test_target_modules_are_kept_to(build_model: Build) -> None:
    def names(**values: object) -> set[str]:
        spec = AdapterSpec.model_validate({"num_experts": 2, "top_k": 1, "rank": 2} | values)
        state = inject(build_model("llama"), spec).state_dict()
        return {name for name in state if name.startswith("layers.1.")}

    assert names(target_modules=("q_proj", "down_proj")) == {
        "layers.1.self_attn.q_proj.lora_A",
        "layers.1.self_attn.q_proj.lora_B",
        "layers.1.mlp.router.weight",
        "layers.1.mlp.down_proj.lora_A",
        "layers.1.mlp.down_proj.lora_B",
    }
    assert names(target_modules=("self_attn.v_proj",), experts="linear") == {
        "layers.1.self_attn.v_proj.router.weight",
        "layers.1.self_attn.v_proj.lora_A",
        "layers.1.self_attn.v_proj.lora_B",
    }
    assert names(target_modules=("mlp.up_proj",), num_experts=1) == {
        "layers.1.mlp.up_proj.lora_A",
        "layers.1.mlp.up_proj.lora_B",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"target_modules": ("q_proj", "qproj")},
            "no linear is called qproj; there are .*mlp.up_proj",
        ),
        ({"target_modules": ("lm_head",)}, "no linear is called lm_head"),
        ({"target_modules": ("proj",)}, "no linear is called proj"),
        (
            {"target_modules": ("q_proj", "v_proj")},
            "block experts need a linear of the feed-forward",
        ),
    ],
)
def test_targets_that_match_nothing_are_refused(
    values: dict[str, object], message: str, build_model: Build
) -> None:
    model = build_model("llama")
    with pytest.raises(InputError, match=message):
        inject(model, AdapterSpec.model_validate(values))
    assert not any(isinstance(module, AdaptedModule) for module in model.modules())
    assert row_map(model).slots == []


def test_a_model_whose_blocks_do_not_fit_is_shown(build_model: Build) -> None:
    model = build_model("opt")  # Its feed-forward linears lie directly in the decoder layer.
    with pytest.raises(InputError, match=r"layers.0 has no feed-forward block.*fc1: Linear 32x"):
        inject(model, SPECS[0])
    with pytest.raises(InputError, match="no list of decoder layers"):
        inject(nn.Sequential(nn.Linear(2, 2)), SPECS[0])
    bare = model(ids()).logits
    adapter = inject(model, SPECS[1])
    torch.testing.assert_close(model(ids()).logits, bare, atol=2e-6, rtol=0)
    assert "layers.0.fc1.router.weight" in adapter.state_dict()


class Packed(nn.Module):
    """A linear whose weights are packed by a library of its own, as GPTQ's and AWQ's are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", linear.weight.detach().to(torch.int8))


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj",)])
def test_a_model_without_a_linear_that_fits_is_refused(
    build_model: Build, targets: str | tuple[str, ...]
) -> None:
    """Else an adapter without a single weight would be trained."""
    model = build_model("llama")
    for parent in list(model.get_submodule("model.layers").modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Packed(child))
    spec = AdapterSpec(experts="linear", target_modules=targets)
    with pytest.raises(InputError, match=r"no linear that an adapter fits.*q_proj: Packed"):
        inject(model, spec)


def test_dora_on_the_outer_linear_alone_names_the_others(build_model: Build) -> None:
    spec = AdapterSpec(use_dora=True, target_modules=("down_proj",))
    with pytest.raises(InputError, match=r"such as \['gate_proj', 'up_proj'\]"):
        inject(build_model("llama"), spec)


def test_a_slot_is_given_once(build_model: Build) -> None:
    model = build_model("llama")
    inject(model, SPECS[0], slot="a")
    with pytest.raises(InputError, match="slot 'a' has an adapter already"):
        inject(model, SPECS[0], slot="a")


def test_a_second_adapter_leaves_the_first_as_it_was(build_model: Build) -> None:
    model = build_model("llama")
    first = inject(model, SPECS[0], slot="a")
    randomise(first)
    expected = model(ids()).logits
    second = inject(model, SPECS[0], slot="b")  # The probe runs past the first one's weights.
    randomise(second)
    assert all(parameter.requires_grad for parameter in first.parameters())
    second.remove()
    assert torch.equal(model(ids()).logits, expected)


def test_initial_weights_depend_on_the_seed_alone(build_model: Build) -> None:
    model = build_model("llama")
    torch.manual_seed(1)
    one = inject(model, SPECS[0], slot="one", seed=3).state_dict()
    state = torch.get_rng_state()
    two = inject(model, SPECS[0], slot="two", seed=3).state_dict()
    other = inject(model, SPECS[0], slot="other", seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["layers.0.mlp.up_proj.lora_A"], other["layers.0.mlp.up_proj.lora_A"])
    assert not torch.equal(one["layers.0.mlp.router.weight"], other["layers.0.mlp.router.weight"])


def test_the_adapter_takes_the_mode_of_its_model(build_model: Build) -> None:
    model = build_model("llama").eval()
    adapter = inject(model, AdapterSpec(num_experts=2, top_k=1, rank=2, dropout=0.5))
    randomise(adapter)
    assert torch.equal(model(ids()).logits, model(ids()).logits)
    model.train()
    assert not torch.equal(model(ids()).logits, model(ids()).logits)


def test_state_goes_round(build_model: Build) -> None:
    adapter = inject(build_model("llama"), SPECS[0])
    randomise(adapter)
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    other = inject(build_model("llama"), SPECS[0], seed=9)
    other.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_a_state_that_does_not_fit_changes_nothing(build_model: Build) -> None:
    adapter = inject(build_model("llama"), SPECS[0])
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    changed = {name: tensor + 1 for name, tensor in before.items()}
    missing = {name: changed[name] for name in list(changed)[1:]}
    shaped = changed | {"layers.1.mlp.down_proj.lora_A": torch.zeros(1, 3, 48)}
    for state, message in (
        (missing, "layers.0.mlp.router.weight is missing"),
        (changed | {"extra": torch.zeros(1)}, "extra does not belong to this adapter"),
        (shaped, r"is \[1, 3, 48\], but must be \[4, 3, 48\]"),
    ):
        with pytest.raises(InputError, match=message):
            adapter.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())


def auxiliary(records: list[LayerRecord]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    layers = [RoutedLayer(one.routing, one.mask_T, one.rank_space) for one in records]
    losses = [
        load_balance(layer, LossSpec()) + contrastive(layer, LossSpec(), generator)
        for layer in layers
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("spec", SPECS[:2], ids=["block", "linear"])
def test_records_of_a_forward_pass(spec: AdapterSpec, build_model: Build) -> None:
    model = build_model("llama")
    adapter = inject(model, spec)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, :4] = 0
    with adapter.record(mask) as records:
        model(ids(), attention_mask=mask)
    names = [record.layer for record in records]
    if spec.experts == "block":
        assert names == ["layers.0.mlp", "layers.1.mlp"]
        assert {len(record.rank_space) for record in records} == {2}, "gate and up"
    else:
        assert len(names) == 14
        assert names[0] == "layers.0.self_attn.q_proj"
        assert {len(record.rank_space) for record in records} == {1}
    for record in records:
        assert record.mask_T is not None
        assert record.mask_T.tolist() == mask.flatten().bool().tolist()
        assert record.routing.expert_TK.shape == (18, 2)
        assert all(term.shape == (18, 2, 3) for term in record.rank_space)
    model(ids())
    assert len(records) == len(names), "nothing is recorded outside the block"
    with adapter.record(rank_space=False) as records:
        model(ids())
    assert {record.rank_space for record in records} == {()}


def test_rank_space_is_that_of_the_chosen_experts(build_model: Build) -> None:
    model = build_model("llama")
    adapter = inject(model, SPECS[0])
    seen: list[Tensor] = []
    module = model.get_submodule("model.layers.0.mlp")
    module.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with adapter.record() as records:
        model(ids())
    lora_A = adapter.state_dict()["layers.0.mlp.up_proj.lora_A"]
    for token, hidden in enumerate(seen[0].view(-1, 32)):
        for slot, expert in enumerate(records[0].routing.expert_TK[token]):
            expected = SPECS[0].scale(32) * lora_A[expert] @ hidden
            torch.testing.assert_close(records[0].rank_space[1][token, slot], expected)


@pytest.mark.parametrize("spec", SPECS[:2], ids=["block", "linear"])
def test_activation_checkpointing_gives_the_same_gradients(
    spec: AdapterSpec, build_model: Build
) -> None:
    """With dropout, and with losses on what was recorded inside the checkpointed layers."""
    spec = spec.model_copy(update={"dropout": 0.3})

    def gradients(checkpointing: bool) -> tuple[dict[str, Tensor], int]:
        model = build_model("llama").train()
        adapter = inject(model, spec)
        randomise(adapter)
        runs = []
        model.get_submodule("model.layers.0").register_forward_hook(lambda *_: runs.append(1))
        model.get_submodule("model.layers.0.self_attn").register_forward_hook(
            lambda *_: runs.append(1)
        )
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(7)
        with adapter.record(torch.ones(3, 6)) as records:
            logits = model(ids()).logits
        count = len(records)
        (logits.square().mean() + auxiliary(records)).backward()
        assert len(records) == count, "the recomputation is not recorded"
        grads = {name: parameter.grad for name, parameter in adapter.named_parameters()}
        return {name: grad for name, grad in grads.items() if grad is not None}, len(runs)

    (plain, runs), (checkpointed, more_runs) = gradients(False), gradients(True)
    assert more_runs > runs, "the layers were computed again"
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(num_experts=16),
        AdapterSpec(experts="linear", num_experts=32),
        AdapterSpec(use_dora=True, target_modules=("up_proj", "q_proj")),
    ],
)
def test_under_autocast_all_but_the_router_is_in_lower_precision(
    spec: AdapterSpec, build_model: Build
) -> None:
    model = build_model("llama")
    adapter = inject(model, spec)
    long = torch.randint(3, 64, (4, 90), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16), adapter.record() as records:
        logits = model(long).logits
    logits.float().square().mean().backward()
    exact = build_model("llama")(long).logits
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.05)
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert {record.routing.logits_TE.dtype for record in records} == {torch.float32}
    assert {term.dtype for record in records for term in record.rank_space} == {torch.bfloat16}


def test_a_bfloat16_model_keeps_float32_adapters(build_model: Build) -> None:
    model = build_model("llama").bfloat16()
    adapter = inject(model, SPECS[0])
    randomise(adapter)
    logits = model(ids()).logits
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name


def test_a_model_gets_no_attribute_and_its_adapters_share_a_row_map(build_model: Build) -> None:
    model = build_model("llama")
    before = set(vars(model))
    first, second = inject(model, SPECS[0], slot="a"), inject(model, SPECS[1], slot="b")
    assert first.rows is second.rows is row_map(model)
    assert first.rows.slots == ["a", "b"]
    first.remove()
    second.remove()
    assert set(vars(model)) == before
    assert row_map(model) is not first.rows, "the model knows nothing of it"


def test_an_owner_keeps_the_row_map_while_adapters_come_and_go(build_model: Build) -> None:
    model = build_model("llama")
    rows = row_map(model)
    for slot in ("a", "b"):
        adapter = inject(model, SPECS[0], slot=slot, rows=rows)
        randomise(adapter)
        bare = model(ids()).logits
        with rows.everywhere(None):
            assert not torch.equal(model(ids()).logits, bare)
        assert rows.slots == [slot]
        adapter.remove()
    inject(model, SPECS[0], slot="a", rows=rows)
    with pytest.raises(InputError, match="read another row map"):
        inject(model, SPECS[0], slot="b", rows=type(rows)())
    assert rows.slots == ["a"]
