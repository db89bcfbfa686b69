"""Plain LoRA travels to and from the real PEFT library."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach, read, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.inject import inject
from workers.spec import AdapterSpec, InputError


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    """Conv1D instead of Linear, `transformer.h` instead of `model.layers`."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The same random base each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def randomise(parameters: object) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        with torch.no_grad():
            parameter.normal_(std=0.2, generator=generator)


def peft_folder(folder: Path, build: Callable[[], nn.Module], **config: object) -> Path:
    """An adapter trained-like and saved by PEFT itself."""
    values = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **config}
    model = get_peft_model(seeded(build), LoraConfig(task_type="CAUSAL_LM", **values))
    randomise(p for name, p in model.named_parameters() if "lora_" in name)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(ids).logits


CONFIGS = {
    "all-linear": {},
    "rslora": {"use_rslora": True, "lora_dropout": 0.1},
    "some": {"target_modules": ["q_proj", "down_proj"]},
    "pattern": {"target_modules": r".*\.self_attn\.[qv]_proj"},
    "dora": {"use_dora": True, "lora_dropout": 0.1},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}},
    "alphas": {"alpha_pattern": {"v_proj": 3, "^model.layers.0.self_attn.o_proj": 20}},
    "ranks and alphas": {
        **{"rank_pattern": {"mlp.down_proj": 6, "k_proj": 3}, "use_rslora": True},
        **{"alpha_pattern": {"mlp.down_proj": 5}, "use_dora": True},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_peft_computes_the_same_here(
    name: str, tmp_path: Path, ids: torch.Tensor
) -> None:
    folder = peft_folder(tmp_path / "peft", llama, **CONFIGS[name])
    theirs = logits(PeftModel.from_pretrained(seeded(llama), folder), ids)
    assert (theirs - logits(seeded(llama), ids)).abs().max() > 0.01, "the adapter must matter"
    ours = logits(attach(seeded(llama), folder), ids)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    imported = import_folder(folder, tmp_path / "ours")
    torch.testing.assert_close(logits(attach(seeded(llama), imported), ids), ours)


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("option", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_an_adapter_of_ours_computes_the_same_in_peft(
    build: Callable[[], nn.Module], option: dict[str, bool], tmp_path: Path, ids: torch.Tensor
) -> None:
    model = seeded(build)
    shape = {"num_experts": 1, "top_k": 1, "rank": 4, "alpha": 8, **option}
    spec = AdapterSpec.model_validate(shape)
    adapter = inject(model, spec)
    randomise(adapter.parameters())
    save(adapter, tmp_path / "ours", Manifest(base=BaseRecord(path="base")))
    ours = logits(model, ids)
    theirs = logits(PeftModel.from_pretrained(seeded(build), tmp_path / "ours"), ids)
    assert (theirs - logits(seeded(build), ids)).abs().max() > 0.01, "the adapter must matter"
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    as_bin = export_folder(tmp_path / "ours", tmp_path / "bin", "peft", as_bin=True)
    theirs = logits(PeftModel.from_pretrained(seeded(build), as_bin), ids)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_conv1d_adapters_of_peft_compute_the_same_here(tmp_path: Path, ids: torch.Tensor) -> None:
    targets = ["c_attn", "c_fc", "mlp.c_proj"]
    folder = peft_folder(tmp_path / "peft", gpt2, target_modules=targets, fan_in_fan_out=True)
    theirs = logits(PeftModel.from_pretrained(seeded(gpt2), folder), ids)
    ours = logits(attach(seeded(gpt2), folder), ids)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_rank_pattern_goes_back_as_it_came(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", llama, **CONFIGS["ranks and alphas"])
    ours = import_folder(folder, tmp_path / "ours")
    assert read(ours).spec.rank == 6
    assert read(ours).spec.use_dora
    source, back = (
        load_file(path / "adapter_model.safetensors")
        for path in (folder, export_folder(ours, tmp_path / "back", "peft"))
    )
    assert source.keys() == back.keys()
    assert all(torch.equal(source[name], back[name]) for name in source)


def test_lost_magnitudes_are_refused(tmp_path: Path) -> None:
    """Some: the model's layers miss them. All: the file itself contradicts its configuration."""
    folder = peft_folder(tmp_path / "peft", llama, use_dora=True)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    some = next(name for name in tensors if "magnitude" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != some}, path)
    bare = seeded(llama)
    with pytest.raises(InputError, match="lora_magnitude is missing"):
        attach(bare, folder)
    assert "slot" not in str(bare)
    save_file({name: tensor for name, tensor in tensors.items() if "magnitude" not in name}, path)
    with pytest.raises(InputError, match="use_dora is True, but it has none of its magnitudes"):
        read(folder)


def test_import_and_export_keep_peft_tensors_and_precision(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", lambda: llama().to(torch.bfloat16))
    source = load_file(folder / "adapter_model.safetensors")
    half = {name: tensor.to(torch.bfloat16) for name, tensor in source.items()}
    torch.save(half, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    back = export_folder(import_folder(folder, tmp_path / "ours"), tmp_path / "back", "peft")
    written = load_file(back / "adapter_model.safetensors")
    assert written.keys() == half.keys()
    assert all(torch.equal(written[name], half[name]) for name in half)
    assert all(tensor.dtype == torch.float32 for tensor in read(back).tensors.values())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"lora_bias": True}, "lora_bias is set to True, which is not supported"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"(q|v)_proj": 2}}, r"'\(q\|v\)_proj' is no name of a linear"),
        ({"layers_to_transform": [0], "target_modules": ["q_proj"]}, "layers_to_transform is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
)
def test_what_our_layers_do_not_compute_is_refused(
    config: dict[str, object], why: str, tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path / "peft", llama, **config)
    with pytest.raises(InputError, match=why) as refused:
        attach(seeded(llama), folder)
    assert "\n" not in str(refused.value)


def test_a_layer_left_out_of_a_pattern_is_refused_when_it_is_attached(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", llama, target_modules=r".*\.0\.self_attn\.q_proj")
    bare = seeded(llama)
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.lora_A is missing"):
        attach(bare, folder)
    assert "slot" not in str(bare)


def test_lora_outside_of_the_layers_is_refused(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", llama, target_modules=["q_proj", "lm_head"])
    with pytest.raises(InputError, match=r"lm_head.* no part of a LORA adapter"):
        read(folder)


def test_more_than_one_expert_does_not_go_to_peft(saved: Callable[..., Path]) -> None:
    folder = saved()
    with pytest.raises(InputError, match="is a mixlora adapter and cannot be written as peft"):
        export_folder(folder, folder.parent / "peft", "peft")
    assert not (folder.parent / "peft").exists()
    values = json.loads((folder / "adapter_config.json").read_text())
    assert values["peft_type"] == "MIXLORA"
