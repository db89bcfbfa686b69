"""Plain LoRA merged: as PEFT merges it, and into bases whose files have other layouts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.workers.adapter.stock.models import (
    adapted_logits,
    ids,
    planned,
    stock,
    write_adapter,
    write_base,
)
from workers.config.base import InputError

ATTENTION = ("q_proj", "v_proj")
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 5}}),
        ("llama", {"target_modules": ["down_proj"], "layers_to_transform": [1]}),
        ("qwen2", {"target_modules": "all-linear", "use_rslora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
)
def test_it_merges_as_peft_does(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    base = write_base(tmp_path / "base", family, **(GPT2 if family == "gpt2" else {}))
    model = AutoModelForCausalLM.from_pretrained(base)
    bare = model(ids()).logits
    tuned = get_peft_model(model, LoraConfig(r=3, lora_alpha=8, task_type="CAUSAL_LM", **lora))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.normal_(0.0, 0.2, generator=generator)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned.eval()(ids()).logits
    planned(base, tmp_path / "adapter").write(tmp_path / "out", print)
    assert (bare - expected).abs().max() > 0.01, "the adapter must matter"
    torch.testing.assert_close(stock(tmp_path / "out")(ids()).logits, expected, atol=1e-4, rtol=0)
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / one / "model.safetensors") for one in ("out", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_base_with_experts_of_its_own_takes_it_on_the_attention(
    tmp_path: Path, family: str
) -> None:
    few = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "head_dim": 8}
    base = write_base(tmp_path / "base", family, num_local_experts=4, **few)
    plain = {"num_experts": 1, "top_k": 1, "target_modules": ATTENTION}
    adapter = write_adapter(base, tmp_path / "adapter", **plain)
    planned(base, adapter).write(tmp_path / "out", print)
    expected = adapted_logits(base, adapter)
    torch.testing.assert_close(stock(tmp_path / "out")(ids()).logits, expected, atol=1e-4, rtol=0)


def test_a_linear_that_the_files_have_otherwise_is_refused(tmp_path: Path) -> None:
    """A weight that lies there together with others cannot be changed by its name."""
    base = write_base(tmp_path / "base", "llama")
    adapter = write_adapter(base, tmp_path / "adapter", num_experts=1, top_k=1)
    (adapter / "manifest.json").unlink()
    tensors = load_file(base / "model.safetensors")
    rows = [tensors.pop(f"model.layers.0.self_attn.{one}_proj.weight") for one in "qkv"]
    tensors["model.layers.0.self_attn.qkv_proj.weight"] = torch.cat(rows)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="or have it together with others"):
        planned(base, adapter)


OWN: dict[str, dict[str, Any]] = {
    "rows": {"train_tokens": (9, 5, 63)},
    "rows of the embedding": {"train_tokens": (9, 5), "train_tokens_of": ("embed_tokens",)},
    "copies": {"train_also": ("embed_tokens", "lm_head")},
}


@torch.no_grad()
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", [{"num_experts": 1, "top_k": 1}, {}], ids=["plain", "experts"])
def test_numbers_of_the_embedding_and_the_head_stand_in_place_of_the_bases(
    tmp_path: Path, own: str, tied: bool, shape: dict[str, Any]
) -> None:
    base = write_base(tmp_path / "base", "qwen2", tie_word_embeddings=tied)
    adapter = write_adapter(base, tmp_path / "adapter", **shape, **OWN[own])
    planned(base, adapter).write(tmp_path / "out", print)
    expected, written = adapted_logits(base, adapter), stock(tmp_path / "out")
    torch.testing.assert_close(written(ids()).logits, expected, atol=1e-4, rtol=0)
    before = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    changed = (written.get_input_embeddings().weight != before).any(1).nonzero().flatten()
    tokens = OWN[own].get("train_tokens", range(len(before)))
    assert changed.tolist() == sorted(tokens)
