"""m-LoRA's layout of before August 2024, made from the reference's own adapter of today."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach, inspect, load_into, read
from workers.config.base import InputError

LINEARS = {"gate_proj": "w1_proj", "down_proj": "w2_proj", "up_proj": "w3_proj"}
Rename = Callable[[str], str]


def old_name(name: str) -> str:
    """As m-LoRA 0.2 wrote it."""
    name = re.sub(r"\.mlp\.moe_gate", ".gate", name)
    name = re.sub(r"\.mlp\.(\w+)\.(experts\.\d+)", r".\2.\1", name)
    return w_names(name)


def w_names(name: str) -> str:
    return re.sub(r"(gate|down|up)_proj", lambda match: LINEARS[match[0]], name)


def write(golden: Path, folder: Path, rename: Rename, **changes: Any) -> Path:
    folder.mkdir()
    tensors = torch.load(golden / "adapter" / "adapter_model.bin", weights_only=True)
    values = json.loads((golden / "adapter" / "adapter_config.json").read_text())
    values["target_modules"] = [rename(target) for target in values["target_modules"]]
    values |= {"routing_strategy": "mixtral", **changes}
    torch.save({rename(name): t for name, t in tensors.items()}, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


LAYOUTS: dict[str, tuple[Rename, dict[str, Any]]] = {
    "w1_proj": (old_name, {}),
    "w1": (lambda name: old_name(name).replace("w1_proj", "w1"), {}),
    "modern linears": (lambda name: re.sub(r"w\d_proj", lambda m: _new(m[0]), old_name(name)), {}),
    "targets as a mapping": (old_name, {"target_modules": None}),
    "modern names, old strategy": (lambda name: name, {}),
    "ranks of the experts": (old_name, {"expert_r": 4, "expert_alpha": 8, "expert_dropout": 0.1}),
}


def _new(name: str) -> str:
    return next(new for new, old in LINEARS.items() if old == name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_computes_what_the_reference_does(
    layout: str, golden: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    rename, changes = LAYOUTS[layout]
    if "target_modules" in changes:
        names = ("q_proj", "k_proj", "v_proj", "o_proj", "w1_proj", "w2_proj", "w3_proj")
        changes = {"target_modules": dict.fromkeys(names, True)}
    if "expert_alpha" in changes:
        config = json.loads((golden / "adapter" / "adapter_config.json").read_text())
        changes = {**changes, "expert_r": config["r"], "expert_alpha": config["lora_alpha"]}
    folder = write(golden, tmp_path / "old", rename, **changes)
    expected = load_file(golden / "expected.safetensors")
    with torch.no_grad():
        logits = attach(model, folder)(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)
    assert inspect(folder)["routing"] == "top_k"


def test_import_brings_it_up_to_date(golden: Path, tmp_path: Path) -> None:
    folder = write(golden, tmp_path / "old", old_name)
    back = export_folder(import_folder(folder, tmp_path / "ours"), tmp_path / "back", as_bin=True)
    both = (back, golden / "adapter")
    new, source = (torch.load(f / "adapter_model.bin", weights_only=True) for f in both)
    assert new.keys() == source.keys()
    assert all(torch.equal(new[name], source[name]) for name in source)
    configs = [
        json.loads((f / "adapter_config.json").read_text()) for f in (back, golden / "adapter")
    ]
    assert configs[0] == configs[1]


def test_switch_of_old_is_switch(golden: Path, tmp_path: Path) -> None:
    changes = {"routing_strategy": "switch", "expert_capacity": 5, "jitter_noise": 0.1}
    folder = write(golden, tmp_path / "old", old_name, ffn_dropout=0.1, **changes)
    spec = read(folder).spec
    assert (spec.routing, spec.expert_capacity, spec.gates) == ("switch", 5, "raw")
    assert spec.router_jitter == 0.1


def test_plain_lora_of_old(golden: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    """It put every linear under self_attn; the same adapter by PEFT's names computes the same."""
    ids = torch.arange(12).view(1, 12)
    generator = torch.Generator().manual_seed(4)
    outputs = []
    for layout, block, linear in (("old", "self_attn", "w3_proj"), ("new", "mlp", "up_proj")):
        folder, tensors = tmp_path / layout, {}
        folder.mkdir()
        generator.manual_seed(4)
        for layer in range(2):
            stem = f"base_model.model.model.layers.{layer}.{block}.{linear}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(2, 32, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(48, 2, generator=generator)
        values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "lora_dropout": 0.05}
        torch.save(tensors, folder / "adapter_model.bin")
        text = json.dumps({**values, "bias": "none", "target_modules": [linear]})
        (folder / "adapter_config.json").write_text(text)
        adapter = load_into(model, folder)
        with torch.no_grad():
            outputs.append(model(ids).logits)
        adapter.remove()
    assert torch.equal(*outputs)


def test_two_names_for_one_tensor_are_refused(golden: Path, tmp_path: Path) -> None:
    folder = write(golden, tmp_path / "old", old_name)
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
    tensors["mixlora.layers.0.mlp.moe_gate.weight"] = tensors["mixlora.layers.0.gate.weight"]
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"moe_gate\.weight under an old name too"):
        read(folder)
