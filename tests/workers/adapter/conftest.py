"""The golden adapter and its base model, and adapters as training would leave them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from workers.adapter.digest import base_digest
from workers.adapter.files import save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.injection.adapter import Adapter
from workers.injection.inject import inject

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "mixlora_llama"


@pytest.fixture
def golden() -> Path:
    """Folder with `base`, `adapter` and `expected.safetensors`."""
    return GOLDEN


@pytest.fixture
def model() -> PreTrainedModel:
    """A fresh copy of the golden adapter's base: 2 layers, width 32, 64 tokens."""
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "base").eval()


@pytest.fixture
def ids() -> torch.Tensor:
    """Three sequences of 12 tokens."""
    return torch.randint(64, (3, 12), generator=torch.Generator().manual_seed(7))


def train(adapter: Adapter, seed: int = 0) -> Adapter:
    """Give every parameter the size that training would, B matrices included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        with torch.no_grad():
            parameter.normal_(std=0.1, generator=generator)
    return adapter


@pytest.fixture
def saved(tmp_path: Path, model: PreTrainedModel) -> Callable[..., Path]:
    """Makes a folder with a trained adapter of the given shape; the model stays bare."""

    def make(name: str = "adapter", seed: int = 0, **shape: object) -> Path:
        spec = AdapterSpec.model_validate({"num_experts": 4, "rank": 4, "alpha": 8.0, **shape})
        adapter = train(inject(model, spec), seed)
        base = BaseRecord(path="golden/base", digest=base_digest(model))
        save(adapter, tmp_path / name, Manifest(base=base, study="s", trial=3))
        adapter.remove()
        return tmp_path / name

    return make
