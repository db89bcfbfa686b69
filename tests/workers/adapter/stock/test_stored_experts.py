"""LoRA on a mixture's own experts, merged into the base's files as they have them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.adapter.stock.models import (
    adapted_logits,
    ids,
    planned,
    stock,
    write_adapter,
    write_base,
)
from workers.config.base import InputError

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
SMALL = {"moe_intermediate_size": 24, "num_experts_per_tok": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 4},  # w1, w2, w3 of each expert
    "qwen3_moe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4},  # all experts together, transposed
    "granitemoe": {"num_local_experts": 4},  # all together, by another name
    "deepseek_v3": {
        **{"first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2, "topk_group": 1},
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8},
        **{"qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4},
    },
}
PLAIN = {"num_experts": 1, "top_k": 1, "target_modules": ()}


def base_of(family: str, folder: Path) -> Path:
    return write_base(folder, family, **{**SMALL, **FAMILIES[family]})


@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [
        {"target_parameters": EXPERTS, "target_modules": "all-linear"},
        {"target_parameters": EXPERTS[:1]},
        {"target_parameters": r"layers\.1\..*down_proj", "use_rslora": True},
    ],
    ids=["all", "inner", "outer of one layer"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_computes_the_same(
    family: str, shape: dict[str, object], tmp_path: Path
) -> None:
    base = base_of(family, tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", **{**PLAIN, **shape})
    planned(base, adapter).write(tmp_path / "out", print)
    expected, found = adapted_logits(base, adapter), stock(tmp_path / "out")(ids()).logits
    assert (stock(base)(ids()).logits - expected).abs().max() > 0.01, "the adapter must matter"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    before, after = (load_file(one / "model.safetensors") for one in (base, tmp_path / "out"))
    assert before.keys() == after.keys()


def test_experts_are_rounded_with_the_rest(tmp_path: Path) -> None:
    base = base_of("mixtral", tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", **PLAIN, target_parameters=EXPERTS[1:])
    planned(base, adapter, "bfloat16").write(tmp_path / "out", print)
    written = load_file(tmp_path / "out" / "model.safetensors")
    experts = [tensor for name, tensor in written.items() if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    assert {tensor.dtype for tensor in experts} == {torch.bfloat16}


def test_files_that_lack_an_expert_are_refused(tmp_path: Path) -> None:
    base = base_of("qwen3_moe", tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", **PLAIN, target_parameters=EXPERTS)
    (adapter / "manifest.json").unlink()
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"stack to model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        planned(base, adapter)
