"""Each sparse twin in stock transformers computes what the adapter does on its dense base."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tests.workers.adapter.stock.models import (
    FAMILIES,
    adapted_logits,
    base_logits,
    ids,
    planned,
    stock,
    write_adapter,
    write_base,
)
from workers.adapter.stock.families import TWINS

BLOCK = ("gate_proj", "up_proj", "down_proj")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 20000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES: dict[str, dict[str, object]] = {
    "all": {},
    "block alone": {"target_modules": BLOCK},
    "one expert a token": {"top_k": 1},
    "three of six": {"num_experts": 6, "top_k": 3},
    "all of them": {"num_experts": 3, "top_k": 3},
    "rank-stabilised": {"use_rslora": True, "rank": 5},
    "one matrix shared": {"shared_a": True},
    "cool router": {"router_temperature": 0.25},
    "up alone": {"target_modules": ("mlp.up_proj",)},
    "one layer": {"target_modules": tuple(f"layers.1.mlp.{one}" for one in BLOCK)},
    "plain LoRA below": {"num_experts": (1, 4), "top_k": 1},
}
BASES: list[tuple[str, dict[str, object]]] = [
    *((family, {}) for family in FAMILIES),
    *((family, {"tie_word_embeddings": True}) for family in FAMILIES),
    ("llama", {"rope_parameters": LLAMA3, "head_dim": 12}),
    ("mistral", {"sliding_window": None, "head_dim": 12}),
    ("qwen3", {"attention_bias": True}),
]


class PreciseRouter(nn.Module):
    """The twins' router, without their rounding of gates to float32."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = functional.linear(hidden.reshape(-1, hidden.shape[-1]), self.router.weight)
        top, index = logits.topk(self.router.top_k, dim=-1)
        return logits, top.softmax(-1), index


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The base of a family, written once for all who only read it."""
    return cache(lambda family: write_base(tmp_path_factory.mktemp("bases") / family, family))


@torch.no_grad()
def check(tmp_path: Path, base: Path, **shape: object) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **shape)
    expected = adapted_logits(base, adapter)
    planned(base, adapter).write(tmp_path / "out", print)
    logits = stock(tmp_path / "out")(ids()).logits
    assert (base_logits(base) - expected).abs().max() > 0.01, "the adapter must matter"
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits, expected, atol=1e-5 * size, rtol=0)


def test_every_twin_is_tested() -> None:
    assert TWINS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(("family", "fields"), BASES)
def test_a_familys_twin_computes_the_same(
    tmp_path: Path, family: str, fields: dict[str, object]
) -> None:
    check(tmp_path, write_base(tmp_path / "base", family, **fields))


@pytest.mark.parametrize("family", ["llama", "qwen2", "granite"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapters_shape_is_kept(
    tmp_path: Path, base_of: Callable[[str], Path], family: str, shape: str
) -> None:
    check(tmp_path, base_of(family), **SHAPES[shape])


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}, LLAMA3])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_configuration_of_before_transformers_5_is_understood(
    tmp_path: Path, family: str, scaling: dict[str, object] | None
) -> None:
    base = write_base(tmp_path / "base", family)
    config = json.loads((base / "config.json").read_text())
    older = {"rope_theta": 30.0, "rope_scaling": scaling, "torch_dtype": config.pop("dtype")}
    del config["rope_parameters"]
    (base / "config.json").write_text(json.dumps({**config, **older}))
    check(tmp_path, base)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
    kinds = (written["rope_scaling"] or {}).get("rope_type")
    assert kinds == (scaling and scaling.get("type", scaling.get("rope_type")))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twins_files_are_what_every_engine_reads(tmp_path: Path, family: str) -> None:
    """Its tensors are those that transformers' own save writes, and its configuration has every
    field, in older words too: engines differ in their defaults. A tied head is there too: SGLang
    does not look whether it is."""
    base = write_base(tmp_path / "base", family, tie_word_embeddings=True)
    planned(base, write_adapter(base, tmp_path / "adapter", top_k=3)).write(tmp_path / "out", print)
    stock(tmp_path / "out").save_pretrained(tmp_path / "again")
    ours, theirs = (load_file(tmp_path / one / "model.safetensors") for one in ("out", "again"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    twin = TWINS[family]
    assert (config["architectures"], config["model_type"]) == ([twin.architecture], twin.model_type)
    assert config["num_experts"] == config["num_local_experts"] == 4
    assert config["num_experts_per_tok"] == 3
    assert config["tie_word_embeddings"] is False
    assert torch.equal(ours["lm_head.weight"], ours["model.embed_tokens.weight"])
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    same = ("hidden_size", "num_key_value_heads", "rms_norm_eps", "vocab_size", "eos_token_id")
    dense = json.loads((base / "config.json").read_text())
    assert {name: config[name] for name in same} == {name: dense[name] for name in same}


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_float64_it_is_exact(tmp_path: Path, family: str, top_k: int) -> None:
    base = write_base(tmp_path / "base", family, dtype="float64")
    adapter = write_adapter(base, tmp_path / "adapter", top_k=top_k)
    planned(base, adapter).write(tmp_path / "out", print)
    model = stock(tmp_path / "out", experts_implementation="eager")  # others know no float64
    assert model.dtype == torch.float64
    for layer in model.model.layers:
        block = getattr(layer, "mlp", None) or layer.block_sparse_moe
        name = "gate" if hasattr(block, "gate") else "router"
        setattr(block, name, PreciseRouter(getattr(block, name)))
    expected = adapted_logits(base, adapter, torch.float64)
    torch.testing.assert_close(model(ids()).logits, expected, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "phi", "gemma"])
def test_plain_lora_merges_into_any_base(tmp_path: Path, family: str) -> None:
    fields = {"n_embd": 32, "n_layer": 2, "n_head": 4} if family == "gpt2" else {"head_dim": 8}
    base = write_base(tmp_path / "base", family, **fields)
    check(tmp_path, base, num_experts=1, top_k=1)
    assert type(stock(tmp_path / "out")) is type(stock(base))


def test_qwen2s_shared_expert_is_zeros_behind_an_open_gate(tmp_path: Path) -> None:
    """llama.cpp's sigmoid divides by what it is of: a gate of zeros makes its answers NaN."""
    base = write_base(tmp_path / "base", "qwen2")
    planned(base, write_adapter(base, tmp_path / "adapter")).write(tmp_path / "out", print)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    shared = {name: one for name, one in tensors.items() if ".shared_expert" in name}
    gates = [one for name, one in shared.items() if "shared_expert_gate" in name]
    assert len(shared) == 4 * len(gates) == 4 * 2
    assert all(gate.all() for gate in gates)
    assert not any(one.any() for name, one in shared.items() if "shared_expert_gate" not in name)
