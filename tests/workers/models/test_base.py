"""The base model: frozen, in the precision asked for, refused with a reason when it is unfit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    PreTrainedModel,
    T5Config,
)

from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.models.base import check_base, load_base


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_frozen_and_in_its_precision(tiny_model_dir: Path, dtype: str) -> None:
    base = load_base(ModelSpec(path=str(tiny_model_dir), dtype=dtype, device="cpu"))
    assert {p.dtype for p in base.model.parameters()} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    assert base.device == torch.device("cpu")
    assert base.tokenizer.pad_token_id != base.tokenizer.eos_token_id


def test_the_device_follows_the_machine(tiny_model_dir: Path) -> None:
    there = torch.cuda.is_available()
    base = load_base(ModelSpec(path=str(tiny_model_dir)))
    assert base.device.type == base.model.device.type == ("cuda" if there else "cpu")
    if not there:
        with pytest.raises(InputError, match=r"model\.device is cuda, but .* sees no GPU"):
            load_base(ModelSpec(path=str(tiny_model_dir), device="cuda"))


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_weights_are_read_right_onto_the_device(
    tiny_model_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's memory would hold the base once a worker; nothing is left to be moved."""
    monkeypatch.setattr("workers.models.base.device_of", lambda _: torch.device(device))
    moved, real = [], PreTrainedModel.to

    def to(model: PreTrainedModel, *where: object) -> PreTrainedModel:
        moved.append({weight.device.type for weight in model.parameters()})
        return real(model, *where)

    monkeypatch.setattr(PreTrainedModel, "to", to)
    base = load_base(ModelSpec(path=str(tiny_model_dir), dtype="bfloat16"))
    assert moved == [{device}]
    assert {one.device.type for one in base.model.buffers()} == {device}


def test_the_models_own_way_to_generate_changes_no_answer(copy: Path) -> None:
    def answer() -> list[int]:
        base = load_base(ModelSpec(path=str(copy), device="cpu"))
        assert base.model.generation_config.eos_token_id == 2
        greedy = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=3)
        ids_BS = torch.arange(4, 12)[None]
        return base.model.generate(ids_BS, generation_config=greedy)[0].tolist()  # type: ignore[no-any-return]

    expected = answer()
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 50.0}))
    assert answer() == expected


def test_the_attention_asked_for_computes_the_same(tiny_model_dir: Path) -> None:
    ids_BS = torch.arange(10, 34).view(2, 12)
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, 8:] = 0
    logits = []
    for attention in ("sdpa", "eager"):
        spec = ModelSpec(path=str(tiny_model_dir), attention=attention)
        base = load_base(spec)
        assert base.model.config._attn_implementation == attention
        logits.append(base.model(ids_BS, attention_mask=mask_BS).logits[mask_BS.bool()])
    torch.testing.assert_close(*logits)


def test_activation_checkpointing_is_switched_on(tiny_model_dir: Path) -> None:
    on = load_base(ModelSpec(path=str(tiny_model_dir), activation_checkpointing=True))
    assert on.model.is_activation_checkpointing
    assert not load_base(ModelSpec(path=str(tiny_model_dir))).model.is_activation_checkpointing


@pytest.mark.parametrize(
    ("unknown", "pad"), [(None, "<|pad|>"), ("<|endoftext|>", "<|endoftext|>")]
)
def test_a_pad_token_apart_from_the_end_is_chosen(
    copy: Path, unknown: str | None, pad: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.unk_token = unknown
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(copy)
    assert check_base(ModelSpec(path=str(copy))).pad_token == pad


def test_a_name_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in ("./no/such/folder", "nobody/no-such-model", "/no/such/folder"):
        with pytest.raises(InputError, match="no such folder, and the Hugging Face hub") as caught:
            check_base(ModelSpec(path=path))
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)


def _adapter(folder: Path) -> None:
    """PEFT's own adapter, in the folder of its base."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"])
    )
    model.save_pretrained(folder)


def _adapter_alone(folder: Path) -> None:
    _adapter(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()


def _encoder(folder: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    BertForMaskedLM(config).save_pretrained(folder)


def _encoder_decoder(folder: Path) -> None:
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)


def _lose_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('ran code of the model')")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_adapter, r"holds an adapter \(adapter_config\.json\)"),
        (_adapter_alone, r"holds an adapter \(adapter_config\.json\)"),
        (_encoder, "is no causal language model, but BertForMaskedLM"),
        (_encoder_decoder, "is no causal language model, but T5ForConditionalGeneration"),
        (_lose_weights, r"lack 1 weights, first model\.layers\.1\.mlp\.up_proj\.weight"),
        (_cut_weights, "cannot be read"),
        (_pickle_weights, r"holds no \*\.safetensors file"),
        (_own_code, "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be read"),
    ],
)
def test_an_unfit_model_is_refused_in_one_line(
    copy: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(copy)
    with pytest.raises(InputError, match=message) as caught:
        load_base(ModelSpec(path=str(copy)))
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)
