"""The random base model and the random adapter that the contestants share."""

import re
import sys
from pathlib import Path

import torch
from peer_setup import Sizes
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.adapter.convert import export_folder
from workers.adapter.files import save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.config.model import ModelSpec
from workers.injection.inject import inject
from workers.models.base import load_base

HEAD = 64
"""Width of an attention head."""


def write_base(shape: str, sizes: Sizes, folder: Path) -> Path:
    """A Llama of random weights; `shape` is WIDTHxFEED_FORWARDxLAYERS, as in 576x1536x4.

    Three query heads share a key head, as in SmolLM2; four where three do not fit.
    """
    if not re.fullmatch(r"\d+x\d+x\d+", shape) or int(shape.split("x", maxsplit=1)[0]) % HEAD:
        raise SystemExit(f"--shapes: {shape} is not WIDTHxFEED_FORWARDxLAYERS, {HEAD} | WIDTH")
    width, feed_forward, layers = map(int, shape.split("x"))
    heads = width // HEAD
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=next(heads // n for n in (3, 4, 2, 1) if heads % n == 0),
        vocab_size=sizes.vocabulary,
        max_position_embeddings=max(sizes.length, 128),
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    weights = LlamaForCausalLM(config).state_dict()
    del weights["lm_head.weight"]  # tied
    # Not the model's save_pretrained: it loads deepspeed, which takes seconds and prints.
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


def write_adapter(base: Path, experts: int, sizes: Sizes, folder: Path) -> Path:
    """A MixLoRA adapter as if trained (no zeros in B), in the format that both MoE peers read."""
    model = load_base(ModelSpec(path=str(base), device="cpu")).model
    spec = AdapterSpec(
        num_experts=experts,
        top_k=sizes.top_k,
        rank=sizes.rank,
        alpha=sizes.alpha,
        dropout=sizes.dropout,
    )
    adapter = inject(model, spec)
    torch.manual_seed(0)
    for name, parameter in adapter.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.02)
    own = folder.with_name(f"{folder.name}-own")
    save(adapter, own, Manifest(base=BaseRecord(path=str(base))))
    return export_folder(own, folder, "mixlora", as_bin=True)
