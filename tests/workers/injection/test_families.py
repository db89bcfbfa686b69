"""Each family that people use, from injection to generation: random models of 2 layers, found by
structure alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from workers.adapter.digest import base_digest
from workers.adapter.files import load_into, read, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.injection.adapter import Adapter
from workers.injection.inject import inject
from workers.models.compatibility import check_adapter

Build = Callable[..., nn.Module]

# So that a random model neither repeats its last token nor stops.
TALKATIVE = {"tie_word_embeddings": False, "eos_token_id": None}
HEADS = {"head_dim": 8, "num_key_value_heads": 2}
GATED = {
    "llama": HEADS,
    "mistral": HEADS,
    "qwen2": HEADS,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS,
    "gemma3_text": HEADS,
    "phi3": HEADS,
    "olmo2": HEADS,
    "smollm3": HEADS,
    "granite": HEADS,
    "cohere": HEADS,
    "stablelm": HEADS,
    "seed_oss": HEADS,  # its dropout is a function
}
UNGATED = {
    "phi": {},
    "gpt2": {},
    "gpt_neox": {},
    "falcon": {},
    "starcoder2": HEADS,
    "gptj": {"rotary_dim": 4},
}
SHARED = {  # beside native experts, a shared one: a plain feed-forward block
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, **HEADS},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 48, **HEADS},
}
STACKED = {
    "mixtral": {"num_local_experts": 4, **HEADS},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        **HEADS,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **HEADS},
    "deepseek_v3": {  # the first layer is dense, the next has a shared expert too
        **{"first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 16, "n_group": 2, "topk_group": 1, "q_lora_rank": 16},
        **{"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    },
    "granitemoe": {"num_local_experts": 4, **HEADS},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, **HEADS},
}
APART = {  # whose feed-forward is no module that takes one tensor: linear experts only
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2},
}
BLOCK = AdapterSpec(num_experts=4, top_k=2, rank=3, alpha=6.0)
LINEAR = AdapterSpec(experts="linear", num_experts=4, top_k=2, rank=3, alpha=6.0)
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
PLAIN = AdapterSpec(num_experts=1, top_k=1, rank=3, alpha=6.0)


def ids_BS() -> Tensor:
    return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module) -> Tensor:
    found: Tensor = model(ids_BS(), labels=ids_BS()).loss
    return found


def train(model: nn.Module, adapter: Adapter) -> None:
    """A few steps. Every gradient counts after the first one, when no B matrix is zero any more."""
    torch.manual_seed(0)  # dropout draws; how much is learnt must not hang on the tests before
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.03)
    model.train()
    for step in range(4):
        optimizer.zero_grad()
        loss(model).backward()
        for name, parameter in adapter.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or (step == 0 and not name.endswith("lora_B")), name
        optimizer.step()
    model.eval()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@torch.no_grad()
def generated(model: nn.Module) -> Tensor:
    """Greedy tokens, with the model's own cache; the same as from whole forward passes."""
    greedy = GenerationConfig(do_sample=False, max_new_tokens=4, pad_token_id=0)
    tokens_BS: Tensor = model.generate(ids_BS(), generation_config=greedy)  # type: ignore[operator]
    expected_BS = ids_BS()
    for _ in range(4):
        next_B1 = model(expected_BS).logits[:, -1:].argmax(-1)
        expected_BS = torch.cat([expected_BS, next_B1], dim=1)
    assert torch.equal(tokens_BS, expected_BS)
    return tokens_BS


def whole_trip(build: Callable[[], nn.Module], spec: AdapterSpec, folder: Path) -> None:
    """Inject, change nothing, train, save, be seen to fit from the configuration alone, load onto a
    fresh copy, compute and generate alike."""
    model = build()
    bare, tokens, before = model(ids_BS()).logits, generated(model), loss(model)
    adapter = inject(model, spec)
    fresh = model(ids_BS()).logits
    if spec.experts == "block" and spec.is_routed:  # the gates sum to 1 in exact arithmetic only
        torch.testing.assert_close(fresh, bare, atol=2e-6, rtol=0)
    else:
        assert torch.equal(fresh, bare)
    train(model, adapter)
    assert loss(model) < before - 0.01
    trained, answer = model(ids_BS()).logits, generated(model)
    assert not torch.equal(answer, tokens)

    other = build()
    save(adapter, folder, Manifest(base=BaseRecord(path="tiny", digest=base_digest(other))))
    model.config.save_pretrained(folder.parent / "base")  # type: ignore[operator,union-attr]
    check_adapter(ModelSpec(path=str(folder.parent / "base")), read(folder), "it")
    loaded = load_into(other, folder)
    assert loaded.state_dict().keys() == adapter.state_dict().keys()
    assert torch.equal(other(ids_BS()).logits, trained)
    assert torch.equal(generated(other), answer)
    loaded.remove()
    assert torch.equal(other(ids_BS()).logits, bare)


@pytest.mark.parametrize("family", GATED | UNGATED | SHARED)
def test_block_experts(family: str, build_model: Build, tmp_path: Path) -> None:
    changes = (GATED | UNGATED | SHARED)[family]
    whole_trip(lambda: build_model(family, **TALKATIVE, **changes), BLOCK, tmp_path / "adapter")


@pytest.mark.parametrize("spec", [LINEAR, PLAIN], ids=["linear", "plain"])
@pytest.mark.parametrize("family", STACKED | APART)
def test_linear_experts(family: str, spec: AdapterSpec, build_model: Build, tmp_path: Path) -> None:
    changes = (STACKED | APART)[family]
    whole_trip(lambda: build_model(family, **TALKATIVE, **changes), spec, tmp_path / "adapter")


@pytest.mark.parametrize("family", STACKED)
def test_lora_of_the_base_s_own_experts(family: str, build_model: Build, tmp_path: Path) -> None:
    spec = PLAIN.model_copy(update={"target_parameters": EXPERTS})
    changes = STACKED[family]
    whole_trip(lambda: build_model(family, **TALKATIVE, **changes), spec, tmp_path / "adapter")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "olmoe"])
def test_block_experts_on_stacked_experts_are_refused(family: str, build_model: Build) -> None:
    model = build_model(family, **STACKED[family])
    with pytest.raises(InputError, match=r"stacked as \w+\.experts\.gate_up_proj \[4, ") as caught:
        inject(model, BLOCK)
    assert "supported on it are experts: linear, and num_experts: 1" in str(caught.value)
    assert "LoRA on its own experts, by target_parameters" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", STACKED)
def test_stacking_changes_no_digest(family: str, build_model: Build, tmp_path: Path) -> None:
    model = build_model(family, **STACKED[family])
    model.save_pretrained(tmp_path)  # type: ignore[operator]  # Each expert by itself.
    assert base_digest(tmp_path) == base_digest(model)


@pytest.mark.parametrize("family", APART)
def test_a_block_that_is_none_is_shown(family: str, build_model: Build) -> None:
    with pytest.raises(InputError, match=r"a module of its own .*32x.*experts: linear needs none"):
        inject(build_model(family, **APART[family]), BLOCK)


def test_block_experts_go_to_the_shared_expert(build_model: Build) -> None:
    state = inject(build_model("qwen2_moe", **SHARED["qwen2_moe"]), BLOCK).state_dict()
    places = {".".join(name.split(".")[2:-1]) for name in state if name.startswith("layers.1.mlp.")}
    block = {
        f"mlp.shared_expert.{name}" for name in ("router", "gate_proj", "up_proj", "down_proj")
    }
    assert places == block | {"mlp.shared_expert_gate"}
