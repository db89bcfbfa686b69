"""Tiny random bases of each family, adapters of them, and what the two compute together."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.workers.adapter.conftest import train
from workers.adapter.digest import base_digest
from workers.adapter.files import load_into, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.adapter.stock.export import Export, prepare
from workers.config.adapter import AdapterSpec
from workers.injection.inject import inject

WIDTH, TOKENS = 32, 64
SIZES: dict[str, object] = {
    "vocab_size": TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "granite": {
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
    },
    "olmo2": {},
}
"""Further fields of each family's tiny base."""


def write_base(folder: Path, family: str, **fields: object) -> Path:
    """A base whose every weight is random: biases and norms too."""
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **fields})
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(float(name.endswith("norm.weight")), 0.2, generator=generator)
    model.to(getattr(torch, str(fields.get("dtype", "float32")))).save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, **shape: object) -> Path:
    """A trained adapter of that base; fields are AdapterSpec's."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    spec = AdapterSpec.model_validate({"num_experts": 4, "rank": 3, "alpha": 8.0, **shape})
    record = BaseRecord(path=str(base), digest=base_digest(base))
    save(train(inject(model, spec)), folder, Manifest(base=record, study="a study", trial=3))
    return folder


def planned(base: Path, adapter: Path, dtype: str | None = None) -> Export:
    """The checkpoint of the two."""
    return prepare(adapter, base, name="name@1", base_name="a base", dtype=dtype)


def ids() -> Tensor:
    """Three sequences of 12 tokens."""
    return torch.randint(TOKENS, (3, 12), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def adapted_logits(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of the adapter on its base."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    attached = load_into(model, adapter)
    for parameter in attached.parameters():
        parameter.data = parameter.data.to(dtype)
    logits: Tensor = model(ids()).logits
    return logits


@torch.no_grad()
def base_logits(base: Path) -> Tensor:
    """Of the bare base."""
    logits: Tensor = AutoModelForCausalLM.from_pretrained(base).eval()(ids()).logits
    return logits


def stock(folder: Path, **options: Any) -> PreTrainedModel:
    """A checkpoint in stock transformers, every weight of which is in its files."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not any(report.values()), report
    loaded: PreTrainedModel = model.eval()
    return loaded
