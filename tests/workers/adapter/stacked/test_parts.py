"""LoRA on a mixture's own experts travels to and from the real PEFT library."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach, inspect, load_into, read, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.injection.inject import inject
from workers.models.compatibility import check_adapter

SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss")
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def build(family: str) -> nn.Module:
    """The same random base each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **SIZES)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
    return model


def randomise(parameters: object) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def peft_folder(folder: Path, family: str, **config: object) -> Path:
    """An adapter trained-like and saved by PEFT itself."""
    values = {"r": 4, "lora_alpha": 8, "target_modules": [], **config}
    model = get_peft_model(build(family), LoraConfig(task_type="CAUSAL_LM", **values))
    randomise(p for name, p in model.named_parameters() if "lora_" in name)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(3, 64, (3, 11), generator=torch.Generator().manual_seed(0))
    return model.eval()(ids).logits


CONFIGS = {
    "both": {"target_parameters": [GATE_UP, DOWN]},
    "short names": {"target_parameters": ["down_proj", "gate_up_proj"], "use_rslora": True},
    "inner": {"target_parameters": ["experts.gate_up_proj"]},
    "outer": {"target_parameters": [DOWN], "target_modules": ["q_proj"]},
    "beside linears": {
        "target_parameters": [DOWN, GATE_UP],
        "target_modules": ["q_proj", "o_proj"],
    },
    "patterns": {  # as PEFT writes for families whose experts were linears once
        **{"target_parameters": [DOWN, GATE_UP]},
        **{
            "rank_pattern": {r".*\.mlp\.experts\.gate_up_proj": 7},
            "alpha_pattern": {".*\\.down_proj": 3},
        },
    },
    "beside a pattern": {
        **{"target_parameters": [DOWN], "target_modules": r".*\.1\.self_attn\.v_proj"},
    },
    "one layer": {"target_parameters": [f"model.layers.1.{DOWN}", f"1.{GATE_UP}"]},
    "each layer otherwise": {"target_parameters": [f"layers.0.{DOWN}", f"layers.1.{GATE_UP}"]},
    "ranks and alphas": {
        **{"target_parameters": [GATE_UP, DOWN], "target_modules": ["k_proj"]},
        **{"rank_pattern": {DOWN: 6, "k_proj": 2}, "alpha_pattern": {f"1.{GATE_UP}": 3}},
    },
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_peft_computes_the_same_here(name: str, family: str, tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", family, **CONFIGS[name])
    theirs = logits(PeftModel.from_pretrained(build(family), folder))
    bare = logits(build(family))
    assert (theirs - bare).norm() > 0.01 * bare.norm()
    ours = import_folder(folder, tmp_path / "ours", build(family))
    model = attach(build(family), ours)
    torch.testing.assert_close(logits(model), theirs, atol=1e-5, rtol=0)

    build(family).config.save_pretrained(tmp_path / "base")
    check_adapter(ModelSpec(path=str(tmp_path / "base")), read(ours), "it")
    back = export_folder(ours, tmp_path / "back")
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(build(family), back)), theirs, atol=1e-6, rtol=0
    )


SPECS: dict[str, dict[str, object]] = {
    "both": {"target_parameters": (GATE_UP, DOWN)},
    "pattern": {"target_parameters": r"layers\.1\..*"},
    "outer": {"target_parameters": ("down_proj",), "target_modules": "all-linear"},
    "goat": {"target_parameters": (GATE_UP, DOWN), "goat_lr_ratio": 0.05},
    "one layer": {"target_parameters": (f"layers.0.{GATE_UP}",), "target_modules": ("o_proj",)},
    "pattern of linears": {"target_parameters": (DOWN,), "target_modules": r".*0\.self_attn\.q.*"},
}


def saved(model: nn.Module, folder: Path, **fields: object) -> Path:
    shape = {"num_experts": 1, "top_k": 1, "rank": 4, "target_modules": (), **fields}
    adapter = inject(model, AdapterSpec.model_validate(shape))
    randomise(adapter.parameters())
    save(adapter, folder, Manifest(base=BaseRecord(path="tiny", digest=None)))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SPECS)
def test_an_adapter_of_ours_computes_the_same_in_peft(
    name: str, family: str, tmp_path: Path
) -> None:
    model = build(family)
    folder = saved(model, tmp_path / "ours", **SPECS[name])
    ours = logits(model)
    exported = export_folder(folder, tmp_path / "peft", "peft")
    peft = PeftModel.from_pretrained(build(family), exported)
    torch.testing.assert_close(logits(peft), ours, atol=1e-5, rtol=0)
    again_here = logits(attach(build(family), folder))
    torch.testing.assert_close(again_here, ours, atol=1e-6, rtol=0)

    again = tmp_path / "again"
    peft.save_pretrained(again)
    torch.testing.assert_close(logits(attach(build(family), again)), ours, atol=1e-5, rtol=0)


def test_ours_is_shown(tmp_path: Path) -> None:
    folder = saved(build("mixtral"), tmp_path / "ours", target_parameters=(GATE_UP, DOWN))
    shown = inspect(folder)
    assert shown["target_parameters"] == [GATE_UP, DOWN]
    assert shown["target_modules"] == []
    assert shown["parameters"] == 2 * 4 * 4 * (32 + 96 + 48 + 32)
    values = json.loads((folder / "adapter_config.json").read_text())
    assert values["lora_dropout"] == 0  # PEFT refuses any other


def change(tensors: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = load_file(folder / "adapter_model.safetensors")
        tensors(found)
        save_file(found, folder / "adapter_model.safetensors")

    return damage


def configure(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


WRAPPER = "base_model.model.model.layers.1.mlp.experts"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one wrapper less": (
        change(lambda t: [t.pop(f"{WRAPPER}.lora_{x}.weight") for x in "AB"]),
        "target_parameters name 2 weights of model.layers.1.mlp.experts, but it has tensors for 1",
    ),
    "no B": (
        change(lambda t: t.pop(f"{WRAPPER}.lora_B.weight")),
        "layers.1.mlp.experts.down_proj.lora_B: is missing",
    ),
    "other experts in B": (
        change(lambda t: t.update({f"{WRAPPER}.lora_B.weight": torch.ones(32, 12)})),
        "shapes [16, 48] and [32, 12] of A and B are not of as many experts, with rank 4",
    ),
    "another rank": (configure(r=3), "do not fit rank 3"),
    "no such weight named": (
        configure(target_parameters=[GATE_UP]),
        "target_parameters name 1 weights of model.layers.0.mlp.experts, but it has tensors for 2",
    ),
    "routed": (
        configure(peft_type="MIXLORA", num_experts=2),
        "target_parameters is set to [",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    damage, why = DAMAGES[name]
    folder = peft_folder(tmp_path / "peft", "mixtral", target_parameters=[GATE_UP, DOWN])
    damage(folder)
    with pytest.raises(InputError) as refused:
        read(folder)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


UNFIT = {
    "a dense base": ("llama", {}, "it adapts model.layers.0.mlp.experts"),
    "more experts": (
        "mixtral",
        {"num_experts": 8, "num_local_experts": 8},
        "4, 4, 32], but must be [8, 4, 32]",
    ),
    "other widths": ("mixtral", {"intermediate_size": 64}, "but must be [4, 128, 4]"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_another_base_is_refused(
    name: str, tmp_path: Path, build_model: Callable[..., nn.Module]
) -> None:
    family, changes, why = UNFIT[name]
    folder = peft_folder(tmp_path / "peft", "mixtral", target_parameters=[GATE_UP, DOWN])
    model = build_model(family, **{**SIZES, **changes})
    with pytest.raises(InputError) as refused:
        load_into(model, folder)
    assert why in str(refused.value)
    model.config.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="does not fit"):
        check_adapter(ModelSpec(path=str(tmp_path / "base")), read(folder), "it")


def test_lora_of_the_router_is_refused_with_the_reason(tmp_path: Path) -> None:
    """PEFT's all-linear means it too, in families whose experts were linears once."""
    folder = peft_folder(tmp_path / "peft", "qwen3_moe", target_modules="all-linear")
    with pytest.raises(
        InputError, match=r"adapts model\.layers\.0\.mlp\.gate\.weight, by target_par"
    ):
        read(folder)


def test_tensors_that_the_configuration_names_must_be_there(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", "mixtral", target_parameters=[GATE_UP, DOWN])
    change(lambda t: [t.pop(name) for name in list(t) if name.startswith(WRAPPER)])(folder)
    with pytest.raises(InputError, match=r"names model\.layers\.1\..*, but it has no tensors for"):
        load_into(build("mixtral"), folder)
