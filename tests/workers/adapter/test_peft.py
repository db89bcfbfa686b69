"""Plain LoRA travels to and from the real PEFT library."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from workers.adapter.convert import export_folder, import_folder
from workers.adapter.files import attach, inspect, load_into, read, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.adapter.targets import TargetKeys
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.inject import inject


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


def gpt2_untied() -> GPT2LMHeadModel:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False))


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
    "all but some": {"exclude_modules": ["up_proj", "self_attn.o_proj"]},
    "all but a place": {"exclude_modules": ["model.layers.0.mlp.down_proj"], "use_dora": True},
    "all but a pattern": {
        **{"target_modules": ["q_proj", "up_proj"]},
        **{"exclude_modules": r".*\.1\..*up_proj", "use_rslora": True},
    },
    "more than there is": {"target_modules": ["q_proj", "W_pack", "c_attn", "down_proj"]},
    "the first layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 0},
    "the last layer": {
        **{"target_modules": ["v_proj", "mlp.gate_proj"], "use_dora": True},
        **{"layers_to_transform": [1], "layers_pattern": "layers"},
    },
    "layers beyond": {
        **{"target_modules": ["q_proj"], "layers_to_transform": [0, 5]},
        "layers_pattern": ["h", "layers"],
    },
    "a layer by pattern": {"target_modules": r".*\.0\.self_attn\.q_proj"},
    "a place beside a name": {"target_modules": ["v_proj", "model.layers.0.mlp.up_proj"]},
    "a place beside a layer": {
        **{"target_modules": ["v_proj", "model.layers.0.mlp.up_proj"]},
        **{"layers_to_transform": [1], "rank_pattern": {"v_proj": 2}},
    },
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
    imported = import_folder(folder, tmp_path / "ours", seeded(llama))
    torch.testing.assert_close(logits(attach(seeded(llama), imported), ids), ours)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_may_be_trained_on_and_goes_back_to_peft(
    name: str, tmp_path: Path, ids: torch.Tensor
) -> None:
    """Through the layers and out again: in the layers that it had, and in no other."""
    folder = peft_folder(tmp_path / "peft", llama, **CONFIGS[name])
    model = seeded(llama)
    adapter = load_into(model, folder)
    save(adapter, tmp_path / "ours", Manifest(base=BaseRecord(path="base")))
    assert read(tmp_path / "ours").tensors.keys() == read(folder).tensors.keys()
    ours = logits(model, ids)
    torch.testing.assert_close(logits(attach(seeded(llama), tmp_path / "ours"), ids), ours)
    theirs = logits(PeftModel.from_pretrained(seeded(llama), tmp_path / "ours"), ids)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
def test_goats_scale_is_folded_for_peft(
    options: dict[str, object], tmp_path: Path, ids: torch.Tensor
) -> None:
    spec = AdapterSpec(num_experts=1, top_k=1, rank=4, goat_lr_ratio=0.1, **options)
    model = seeded(llama)
    adapter = inject(model, spec)
    randomise(p for name, p in adapter.state_dict().items() if "magnitude" not in name)
    save(adapter, tmp_path / "ours", Manifest(base=BaseRecord(path="base")))
    ours = logits(model, ids)
    assert (ours - logits(seeded(llama), ids)).abs().max() > 0.01, "the adapter must matter"
    theirs = logits(PeftModel.from_pretrained(seeded(llama), tmp_path / "ours"), ids)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(attach(seeded(llama), tmp_path / "ours"), ids), ours)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["c_attn"], "layers_to_transform": 1, "layers_pattern": "h"},
        {"target_modules": ["c_attn", "c_fc"], "exclude_modules": ["h.0.mlp.c_fc"]},
        {"target_modules": ["transformer.h.1.attn.c_attn"]},
    ],
    ids=str,
)
def test_some_layers_of_another_list_go_both_ways(
    config: dict[str, object], tmp_path: Path, ids: torch.Tensor
) -> None:
    folder = peft_folder(tmp_path / "peft", gpt2, fan_in_fan_out=True, **config)
    theirs = logits(PeftModel.from_pretrained(seeded(gpt2), folder), ids)
    model = seeded(gpt2)
    save(load_into(model, folder), tmp_path / "ours", Manifest(base=BaseRecord(path="base")))
    torch.testing.assert_close(logits(model, ids), theirs, atol=1e-5, rtol=0)
    back = logits(PeftModel.from_pretrained(seeded(gpt2), tmp_path / "ours"), ids)
    torch.testing.assert_close(back, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_and_we_take_the_same_linears(name: str) -> None:
    """The rule itself, on every linear of the model; where a pattern stands, only tensors tell."""
    config = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": "all-linear", **CONFIGS[name]})
    model = get_peft_model(seeded(llama), config)
    keys = TargetKeys.model_validate(
        {field: getattr(config, field) for field in TargetKeys.model_fields}
    )
    told = {path: keys.adapts(path) for path in paths_of(seeded(llama))}
    theirs = {path.removeprefix("base_model.model.") for path in model.targeted_module_names}
    pattern = isinstance(config.target_modules, str) or isinstance(config.exclude_modules, str)
    assert all((is_told is None) == pattern for is_told in told.values())
    assert pattern or {path for path, is_told in told.items() if is_told} == theirs


def test_all_linear_may_stand_in_the_file_itself(tmp_path: Path, ids: torch.Tensor) -> None:
    """PEFT writes names out; a file made by hand need not."""
    folder = peft_folder(tmp_path / "peft", llama)
    values = json.loads((folder / "adapter_config.json").read_text())
    values |= {"target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    theirs = logits(PeftModel.from_pretrained(seeded(llama), folder), ids)
    torch.testing.assert_close(
        logits(attach(seeded(llama), folder), ids), theirs, atol=1e-5, rtol=0
    )


def paths_of(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]


def test_a_pattern_that_never_ends_is_not_run(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", llama, target_modules=["q_proj"])
    values = json.loads((folder / "adapter_config.json").read_text())
    evil = {"exclude_modules": r"(\w|\w\w|.)*!", "target_modules": r"(.*)*\1!"}
    (folder / "adapter_config.json").write_text(json.dumps(values | evil))
    attach(seeded(llama), folder)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]},
    ],
    ids=str,
)
def test_a_layer_that_was_lost_is_refused(config: dict[str, object], tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", llama, **config)
    path = folder / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(path).items() if "layers.0" in name}, path)
    bare = seeded(llama)
    why = r"its configuration names model\.layers\.1\.self_attn\.q_proj, but it has no tensors"
    with pytest.raises(InputError, match=why) as refused:
        attach(bare, folder)
    assert "\n" not in str(refused.value)
    assert "slot" not in str(bare)


def test_tensors_that_the_configuration_leaves_out_are_refused(tmp_path: Path) -> None:
    """PEFT would drop them without a word."""
    folder = peft_folder(tmp_path / "peft", llama, target_modules=["q_proj"])
    values = json.loads((folder / "adapter_config.json").read_text())
    for change in ({"layers_to_transform": 1}, {"exclude_modules": ["layers.0.self_attn.q_proj"]}):
        (folder / "adapter_config.json").write_text(json.dumps(values | change))
        with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn\.q_proj, which its"):
            read(folder)


def llava() -> LlavaForConditionalGeneration:
    """A vision tower whose linears have the names and sizes of the text layers'."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=8, patch_size=4, **sizes)
    text = LlamaConfig(vocab_size=64, num_hidden_layers=2, num_key_value_heads=4, **sizes)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=63)
    )


@pytest.mark.parametrize("base", [llava, llama])
def test_an_adapter_of_a_vision_tower_is_refused(
    base: Callable[[], nn.Module], tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path / "peft", llava, target_modules=r".*vision_tower.*(q|out)_proj")
    bare = seeded(base)
    own = "model.language_model.layers" if base is llava else "model.layers"
    with pytest.raises(InputError) as refused:
        attach(bare, folder)
    assert re.search(
        r"it adapts model\.vision_tower\.\S*layers\.0\.self_attn\.\w+_proj, but the decoder's "
        rf"layers are {re.escape(own)}, with the linears mlp\.down_proj, ",
        str(refused.value),
    )
    assert "\n" not in str(refused.value)
    assert "slot" not in str(bare)
    with pytest.raises(InputError, match=r"it adapts model\.vision_tower"):
        import_folder(folder, tmp_path / "ours", bare)
    assert not (tmp_path / "ours").exists()


def test_the_text_layers_of_a_model_that_sees_are_adapted(
    tmp_path: Path, ids: torch.Tensor
) -> None:
    folder = peft_folder(tmp_path / "peft", llava, target_modules=r".*language_model.*(q|up)_proj")
    theirs = logits(PeftModel.from_pretrained(seeded(llava), folder), ids)
    ours = logits(attach(seeded(llava), folder), ids)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=r"it adapts model\.language_model\.layers\.0"):
        attach(seeded(llama), folder)


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
        (
            {"modules_to_save": ["model.norm"]},
            "train_also: norm is neither the base's embedding nor",
        ),
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


def sharded_folder(folder: Path) -> Path:
    """An adapter in several files, as transformers writes it."""
    model = seeded(llama)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
    randomise(p for name, p in model.named_parameters() if "lora_" in name)
    model.save_pretrained(folder, max_shard_size=1500)
    assert len(list(folder.glob("adapter_model-0000?-of-0000?.safetensors"))) > 2
    return folder


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("index", [INDEX, "adapter_model.safetensors.index.json"])
def test_weights_in_several_files_are_read(index: str, tmp_path: Path, ids: torch.Tensor) -> None:
    folder = sharded_folder(tmp_path / "peft")
    (folder / INDEX).rename(folder / index)
    whole = {}
    for path in folder.glob("*.safetensors"):
        whole |= load_file(path)
    (tmp_path / "whole").mkdir()
    save_file(whole, tmp_path / "whole" / "adapter_model.safetensors")
    shutil.copy(folder / "adapter_config.json", tmp_path / "whole")
    theirs = logits(PeftModel.from_pretrained(seeded(llama), tmp_path / "whole"), ids)
    assert (theirs - logits(seeded(llama), ids)).abs().max() > 0.01, "the adapter must matter"
    ours = logits(attach(seeded(llama), folder), ids)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    imported = import_folder(folder, tmp_path / "ours")
    torch.testing.assert_close(logits(attach(seeded(llama), imported), ids), ours)
    before = inspect(folder)["digest"]
    part = sorted(folder.glob("adapter_model-*"))[1]
    save_file({name: t + 1 for name, t in load_file(part).items()}, part)
    assert inspect(folder)["digest"] != before


def change_map(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        change(values["weight_map"])
        (folder / INDEX).write_text(json.dumps(values))

    return damage


def link_part(folder: Path) -> None:
    part = min(folder.glob("adapter_model-*"))
    part.rename(folder.parent / "elsewhere")
    part.symlink_to(folder.parent / "elsewhere")


FIRST = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
BAD_PARTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a path": (
        change_map(lambda m: m.update({FIRST: "../adapter_model-00001-of-00003.safetensors"})),
        "is no part of adapter_model.safetensors",
    ),
    "a whole path": (change_map(lambda m: m.update({FIRST: "/etc/passwd"})), "is no part of"),
    "a number": (change_map(lambda m: m.update({FIRST: 3})), "is no part of"),
    "a link": (link_part, "is no regular file"),
    "a lost part": (
        lambda f: min(f.glob("adapter_model-*")).unlink(),
        "has no adapter_model-00001",
    ),
    "a cut part": (
        lambda f: min(f.glob("adapter_model-*")).write_bytes(b"x" * 20),
        "is damaged",
    ),
    "a tensor too few": (
        change_map(lambda m: m.update(more=m[FIRST])),
        "lacks tensor more, unlike",
    ),
    "a tensor too many": (change_map(lambda m: m.pop(FIRST)), f"has tensor {FIRST}, unlike"),
    "no map": (lambda f: (f / INDEX).write_text("{}"), "must have a weight_map"),
    "no JSON": (lambda f: (f / INDEX).write_text("[" * 10**5), "is no JSON"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_a_damaged_part_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    damage, why = BAD_PARTS[name]
    folder = sharded_folder(tmp_path / "peft")
    damage(folder)
    with pytest.raises(InputError) as refused:
        read(folder)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


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


def tied() -> LlamaForCausalLM:
    model = llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


BOTH = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    ("build", "names"), [(llama, BOTH), (llama, ["lm_head"]), (gpt2_untied, ["wte"]), (tied, BOTH)]
)
def test_copies_of_whole_weights_travel_both_ways(
    build: Callable[[], nn.Module], names: list[str], tmp_path: Path, ids: torch.Tensor
) -> None:
    """PEFT's modules_to_save are train_also."""
    spec = AdapterSpec(num_experts=1, top_k=1, rank=4, train_also=names)
    model = seeded(build)
    adapter = inject(model, spec)
    randomise(adapter.parameters())
    save(adapter, tmp_path / "ours", Manifest(base=BaseRecord(path="base")))
    expected = model(ids).logits
    theirs = PeftModel.from_pretrained(seeded(build), tmp_path / "ours").eval()
    torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours = attach(seeded(build), tmp_path / "theirs")
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-5, rtol=0)
    assert read(tmp_path / "theirs").spec.train_also == tuple(names)


TOKENS = (9, 5, 63)


@pytest.mark.parametrize(
    ("build", "named"),
    [(llama, BOTH), (llama, ["embed_tokens"]), (llama, ["lm_head"]), (gpt2_untied, ["wte"])],
)
def test_rows_of_tokens_travel_both_ways(
    build: Callable[[], nn.Module], named: list[str], tmp_path: Path, ids: torch.Tensor
) -> None:
    """PEFT's trainable_token_indices are train_tokens."""
    spec = AdapterSpec(
        num_experts=1, top_k=1, rank=4, train_tokens=TOKENS, train_tokens_of=tuple(named)
    )
    _travels(build, spec, tmp_path, ids)
    assert read(tmp_path / "theirs").spec.train_tokens_of == tuple(named)


@pytest.mark.parametrize("named", [(), ("embed_tokens",), tuple(BOTH)])
def test_rows_of_a_base_that_ties_them_travel_both_ways(
    named: tuple[str, ...], tmp_path: Path, ids: torch.Tensor
) -> None:
    spec = AdapterSpec(num_experts=1, top_k=1, rank=4, train_tokens=TOKENS, train_tokens_of=named)
    _travels(tied, spec, tmp_path, ids)
    assert read(tmp_path / "theirs").spec.train_tokens_of == ("embed_tokens",)


def _travels(
    build: Callable[[], nn.Module], spec: AdapterSpec, tmp_path: Path, ids: torch.Tensor
) -> None:
    model = seeded(build)
    bare = model(ids).logits
    adapter = inject(model, spec)
    randomise(adapter.parameters())
    save(adapter, tmp_path / "ours", Manifest(base=BaseRecord(path="base")))
    expected = model(ids).logits
    assert (expected - bare).abs().max() > 0.01
    theirs = PeftModel.from_pretrained(seeded(build), tmp_path / "ours").eval()
    torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = attach(seeded(build), tmp_path / "theirs")
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-5, rtol=0)
    assert read(tmp_path / "theirs").spec.train_tokens == TOKENS


@pytest.mark.parametrize("build", [llama, tied])
@pytest.mark.parametrize("indices", [[9, 5], {"embed_tokens": [9, 5], "lm_head": [9, 5]}])
def test_rows_that_peft_trains_are_read(
    build: Callable[[], nn.Module],
    indices: list[int] | dict[str, list[int]],
    tmp_path: Path,
    ids: torch.Tensor,
) -> None:
    """A list is of the embedding, and of a head that is tied to it."""
    folder = peft_folder(tmp_path / "peft", build, trainable_token_indices=indices)
    expected = PeftModel.from_pretrained(seeded(build), folder).eval()(ids).logits
    assert (seeded(build)(ids).logits - expected).abs().max() > 0.01
    torch.testing.assert_close(
        attach(seeded(build), folder)(ids).logits, expected, atol=1e-5, rtol=0
    )
    assert read(folder).spec.train_tokens == (9, 5)


def test_a_lost_tensor_of_rows_is_refused_where_nothing_is_tied(tmp_path: Path) -> None:
    indices = {"embed_tokens": [9, 5], "lm_head": [9, 5]}
    folder = peft_folder(tmp_path / "peft", tied, trainable_token_indices=indices)
    with pytest.raises(InputError, match=r"tensor lm_head\.token_rows is missing"):
        attach(seeded(llama), folder)
