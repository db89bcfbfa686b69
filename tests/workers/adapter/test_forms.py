"""How the options of an adapter look on disk: names, keys, and what is refused.

The tensors are made here and not by the layers: this is the one place that says what a file holds.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.adapter import folder as folders
from workers.adapter.convert import export_folder
from workers.adapter.files import inspect, read
from workers.adapter.manifest import BaseRecord, Manifest
from workers.adapter.raw import write_raw
from workers.adapter.tensor_names import target_names, to_disk
from workers.adapter.written import config_values
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError

SIZES = {"self_attn.q_proj": (8, 8), "mlp.up_proj": (8, 12), "mlp.down_proj": (12, 8)}
"""Path of each linear in a layer, and its input and output size."""
LAYERS = 2


def shape(**fields: Any) -> AdapterSpec:
    names = tuple(path.rpartition(".")[2] for path in SIZES)
    given = {"num_experts": 3, "rank": 2, "alpha": 4.0, "target_modules": names, **fields}
    return AdapterSpec.model_validate(given)


def stacked(spec: AdapterSpec) -> dict[str, torch.Tensor]:
    """What the layers would hold."""
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        many = spec.experts_in(layer, LAYERS)
        for path, (inner, outer) in SIZES.items():
            routed = many > 1 and (spec.experts == "linear" or path.startswith("mlp"))
            experts, place = many if routed else 1, f"layers.{layer}.{path}"
            if routed:
                owner = place if spec.experts == "linear" else f"layers.{layer}.mlp"
                width = inner if spec.experts == "linear" else 8
                tensors[f"{owner}.router.weight"] = (experts, width)
            tensors[f"{place}.lora_A"] = (1 if spec.shared_a else experts, spec.rank, inner)
            tensors[f"{place}.lora_B"] = (experts, outer, spec.rank)
            if spec.use_dora and path != "mlp.down_proj":
                tensors[f"{place}.lora_magnitude"] = (experts, outer)
    return {name: torch.randn(size, generator=generator) for name, size in tensors.items()}


def write(folder: Path, spec: AdapterSpec) -> Path:
    tensors = stacked(spec)
    values = config_values(spec, target_names(tensors, spec), "base")
    write_raw(folder, values, to_disk(tensors, spec, "model.layers"))
    return folder


def config(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / folders.CONFIG).read_text())
    return values


SHAPES: dict[str, dict[str, Any]] = {
    "top_p": {"routing": "top_p", "top_p": 0.7},
    "top_p raw": {"routing": "top_p", "top_p": 0.5, "gates": "raw", "gate_scale": 1.25},
    "top_p residual": {"routing": "top_p", "gates": "residual"},
    "switch": {"routing": "switch", "expert_capacity": 7},
    "switch raw": {"routing": "switch", "gates": "raw", "router_jitter": 0.01},
    "top_k raw": {"gates": "raw", "gate_scale": 0.5},
    "top_k equal": {"gates": "equal"},
    "goat": {"goat_lr_ratio": 2.0},
    "goat linear": {"goat_lr_ratio": 0.5, "experts": "linear", "use_dora": True},
    "router": {"router_temperature": 0.7, "router_jitter": 0.1, "router_init_std": 0.5},
    "expert dropout": {"expert_dropout": 0.2},
    "dora": {"use_dora": True},
    "dora linear": {"use_dora": True, "experts": "linear"},
    "dora plain": {"use_dora": True, "num_experts": 1, "top_k": 1, "use_rslora": True},
    "shared A": {"shared_a": True},
    "shared A linear": {"shared_a": True, "experts": "linear", "use_dora": True},
    "by layer": {"num_experts": (2, 4)},
    "by layer from one": {"num_experts": (1, 3), "top_k": 1},
    "by layer linear": {"num_experts": (1, 3), "top_k": 1, "experts": "linear"},
    "all at once": {
        **{"num_experts": (2, 3), "routing": "top_p", "gates": "raw", "use_dora": True},
        **{"shared_a": True, "router_temperature": 2.0, "expert_dropout": 0.1, "alpha": 2.5},
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_option_survives_the_disk(name: str, tmp_path: Path) -> None:
    spec = shape(**SHAPES[name])
    found = read(write(tmp_path / "adapter", spec))
    assert found.spec == spec
    assert found.tensors.keys() == stacked(spec).keys()
    for key, tensor in stacked(spec).items():
        assert torch.equal(found.tensors[key], tensor), key
    facts = inspect(tmp_path / "adapter")
    assert {field: facts[field] for field in SHAPES[name]} == json.loads(json.dumps(SHAPES[name]))


def test_names_of_magnitudes_and_of_a_shared_a(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", shape(use_dora=True, shared_a=True))
    sizes = {k: list(t.shape) for k, t in load_file(folder / folders.WEIGHTS).items()}
    up = "mixlora.layers.0.mlp.up_proj"
    assert sizes[f"{up}.lora_A.weight"] == [2, 8]
    assert sizes[f"{up}.experts.2.lora_B.weight"] == [12, 2]
    assert sizes[f"{up}.experts.2.lora_magnitude_vector"] == [12]
    assert sizes["mixlora.layers.1.self_attn.q_proj.lora_magnitude_vector"] == [8]
    assert config(folder)["moetune"] == {"use_dora": True, "shared_a": True}
    plain = write(tmp_path / "b", shape(use_dora=True, num_experts=1, top_k=1))
    names = load_file(plain / folders.WEIGHTS).keys()
    assert "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector" in names
    assert config(plain)["use_dora"] is True
    assert "moetune" not in config(plain)


KEYS = {
    "top_p raw": {
        **{"routing_strategy": "mixlora-dynamic", "num_experts": 3},
        **{"top_p": 0.625, "temperature": 0.8},
    },
    "switch raw": {
        **{"routing_strategy": "mixlora-switch", "num_experts": 3, "expert_capacity": 32},
        "router_init_range": 0.02,
    },
    "router": {
        **{"routing_strategy": "mixlora", "num_experts": 3, "top_k": 2},
        **{"jitter_noise": 0.1, "router_init_range": 0.5},
    },
}


@pytest.mark.parametrize("name", KEYS)
def test_export_has_the_keys_of_moe_peft(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "ours", shape(**SHAPES[name]))
    values = config(export_folder(folder, tmp_path / "theirs", "mixlora"))
    lora = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "bias"}
    assert {k: v for k, v in values.items() if k not in lora} == {
        **KEYS[name],
        "base_model_name_or_path": "base",
        "task_type": "CAUSAL_LM",
    }


@pytest.mark.parametrize("own", ["{{ 'é\\n' }}", None], ids=["own", "the base's"])
@pytest.mark.parametrize("spec", [shape(), shape(num_experts=1, top_k=1)], ids=["mixlora", "peft"])
def test_a_chat_template_of_its_own_comes_along(
    tmp_path: Path, spec: AdapterSpec, own: str | None
) -> None:
    tensors = stacked(spec)
    values = config_values(spec, target_names(tensors, spec), "base")
    asked = {"data": {"chat_template": own}}
    manifest = Manifest(base=BaseRecord(path="base"), spec=asked)
    write_raw(tmp_path / "ours", values, to_disk(tensors, spec, "model.layers"), manifest)
    for _ in range(2):  # into the same folder too
        theirs = export_folder(tmp_path / "ours", tmp_path / "theirs")
    beside = {path.name: path for path in theirs.iterdir()}
    expected = {"chat_template.jinja"} if own else set()
    assert beside.keys() - {folders.CONFIG, folders.WEIGHTS} == expected
    if own:
        assert beside["chat_template.jinja"].read_text(encoding="utf-8") == own
    assert read(theirs).spec == spec, "and does not keep it from being read"


def test_export_folds_what_moe_peft_has_no_word_for(tmp_path: Path) -> None:
    spec = shape(shared_a=True, router_temperature=2.0, alpha=2.5, expert_dropout=0.1)
    theirs = export_folder(write(tmp_path / "ours", spec), tmp_path / "theirs", as_bin=True)
    assert config(theirs).keys().isdisjoint({"moetune"})
    found, before = read(theirs), stacked(spec)
    assert (found.spec.scale(8), found.spec.shared_a, found.spec.router_temperature) == (
        1,
        False,
        1,
    )
    router = "layers.1.mlp.router.weight"
    assert torch.equal(found.tensors[router], before[router] / 2)
    for expert in range(3):
        up = "layers.0.mlp.up_proj"
        update = found.tensors[f"{up}.lora_B"][expert] @ found.tensors[f"{up}.lora_A"][expert]
        ours = spec.scale(8) * before[f"{up}.lora_B"][expert] @ before[f"{up}.lora_A"][0]
        torch.testing.assert_close(update, ours)


def test_export_folds_a_scale_that_differs_by_linear(tmp_path: Path) -> None:
    spec = shape(goat_lr_ratio=2.0)
    found = read(export_folder(write(tmp_path / "ours", spec), tmp_path / "theirs", "mixlora"))
    assert found.spec.goat_lr_ratio is None
    before = stacked(spec)
    for path, (inner, _) in SIZES.items():
        name = f"layers.1.{path}.lora_B"
        scales = spec.scale(inner), found.spec.scale(inner)
        torch.testing.assert_close(scales[1] * found.tensors[name], scales[0] * before[name])


def test_goats_scale_beside_a_pattern_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "ours", shape(goat_lr_ratio=2.0))
    values = config(folder) | {"alpha_pattern": {"up_proj": 3}}
    (folder / folders.CONFIG).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"moetune\.goat_lr_ratio cannot stand beside a pattern"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dora", "MoE-PEFT knows use_dora False only, not True"),
        ("top_p", "with routing top_p, MoE-PEFT knows gate_form raw only, not renormalised"),
        ("top_p residual", "gate_form raw only, not residual"),
        ("switch", "gate_form raw only, not residual"),
        ("top_k raw", "gate_form renormalised only, not raw"),
        ("top_k equal", "gate_form renormalised only, not equal"),
        ("by layer", r"num_experts 4 only, not \(2, 4\)"),
    ],
)
def test_export_refuses_what_moe_peft_cannot_compute(name: str, why: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "ours", shape(**SHAPES[name]))
    with pytest.raises(InputError, match=why) as refused:
        export_folder(folder, tmp_path / "theirs")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "theirs").exists()


def test_what_moe_peft_forgets_of_dora_is_lora(tmp_path: Path) -> None:
    """It saves no magnitudes, and takes the weights' norms when it loads: a factor of 1."""
    folder = write(tmp_path / "a", shape())
    values = {**config(folder), "use_dora": True, "expert_lora": {"use_dora": True}}
    (folder / folders.CONFIG).write_text(json.dumps(values))
    assert read(folder).spec == shape()


DAMAGES = {
    "one magnitude lost": ("experts.1.lora_magnitude_vector", None, "lacks expert 1"),
    "magnitude of another size": ("experts.1.lora_magnitude_vector", [7], "have shapes"),
    "magnitude twice": ("q_proj.lora_magnitude_vector.weight", [8], "is there twice"),
    "shared A of one expert": ("up_proj.experts.1.lora_A.weight", [2, 8], "plain matrix beside"),
    "shared A lost": ("up_proj.lora_A.weight", None, "is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", shape(use_dora=True, shared_a=True))
    end, size, why = DAMAGES[name]
    tensors = load_file(folder / folders.WEIGHTS)
    place = next((key for key in tensors if key.endswith(end)), None)
    if size is None:
        assert place is not None
        del tensors[place]
    else:
        tensors[place or f"mixlora.layers.0.{'self_attn' if 'q_' in end else 'mlp'}.{end}"] = (
            torch.ones(size)
        )
    save_file(tensors, folder / folders.WEIGHTS)
    with pytest.raises(InputError, match=why) as refused:
        read(folder)
    assert "\n" not in str(refused.value)
