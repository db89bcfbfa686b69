"""Adapters on a frozen base whose linears are packed into 4 or 8 bits."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.adapter.digest import base_digest
from workers.adapter.files import load_into, save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.config.extras import installing
from workers.config.model import ModelSpec
from workers.injection.adapter import Adapter
from workers.injection.inject import inject
from workers.models.base import Base, check_base, load_base
from workers.models.quantization import LIBRARIES

SPEC = AdapterSpec(num_experts=4, top_k=2, rank=3, alpha=6.0, dropout=0.0)
QUANTIZATIONS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            find_spec(library) is None, reason=f"needs {library}: {installing('quantized')}"
        ),
    )
    for name, library in LIBRARIES.items()
]


def load(folder: Path, quantization: str | None, dtype: str = "float32") -> Base:
    values = {"path": str(folder), "quantization": quantization, "dtype": dtype, "device": "cpu"}
    return load_base(ModelSpec.model_validate(values))


def ids_BS() -> Tensor:
    return torch.randint(4, 200, (2, 12), generator=torch.Generator().manual_seed(0))


def loss(base: Base) -> Tensor:
    found: Tensor = base.model(ids_BS(), labels=ids_BS()).loss
    return found


@torch.no_grad()
def logits(base: Base) -> Tensor:
    found: Tensor = base.model(ids_BS()).logits.float()
    return found


def randomise(adapter: Adapter) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.1, generator=generator)


def stored_bytes(base: Base) -> int:
    """Size of all weights; torchao's are tensors made of several."""
    sizes = []
    for weight in base.model.parameters():
        parts = weight.__tensor_flatten__()[0] if hasattr(weight, "__tensor_flatten__") else ()
        sizes += [getattr(weight, part).nbytes for part in parts] or [weight.nbytes]
    return sum(sizes)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_it_is_smaller_and_almost_the_same(
    quantization: str, dtype: str, tiny_model_dir: Path
) -> None:
    whole, base = load(tiny_model_dir, None, dtype), load(tiny_model_dir, quantization, dtype)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert stored_bytes(base) < 0.8 * stored_bytes(whole)
    assert base.model.model.embed_tokens.weight.dtype == getattr(torch, dtype)
    assert 0 < distance(logits(base), logits(whole)) < 0.2


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_fresh_adapter_changes_nothing(quantization: str, tiny_model_dir: Path) -> None:
    base = load(tiny_model_dir, quantization)
    bare = logits(base)
    adapter = inject(base.model, SPEC)
    # The gates sum to 1 up to rounding, which may put an input on int8's next step.
    assert distance(logits(base), bare) < (5e-3 if quantization == "bnb_int8" else 1e-6)
    adapter.remove()
    assert torch.equal(logits(base), bare)
    inject(base.model, SPEC.model_copy(update={"num_experts": 1, "top_k": 1}))
    assert torch.equal(logits(base), bare)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_gradients_are_those_of_the_whole_base(quantization: str, tiny_model_dir: Path) -> None:
    """Also after the base has run without gradients, as evaluation does. Without routers: another
    expert for one token would change much."""

    def gradient(name: str | None, layer: int) -> Tensor:
        base = load(tiny_model_dir, name)
        adapter = inject(base.model, SPEC.model_copy(update={"num_experts": 1, "top_k": 1}))
        randomise(adapter)
        logits(base)
        loss(base).backward()
        named = dict(adapter.named_parameters())
        chosen = [named[name].grad for name in named if name.startswith(f"layers.{layer}.")]
        return torch.cat([found.flatten() for found in chosen if found is not None])

    for layer in (0, 1):
        found, expected = gradient(quantization, layer), gradient(None, layer)
        assert torch.cosine_similarity(found, expected, dim=0) > 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_adapter_is_trained_saved_and_loaded(
    quantization: str, dtype: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = load(tiny_model_dir, quantization, dtype)
    before = loss(base).item()
    adapter = inject(base.model, SPEC)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.03)
    base.model.train()
    for _ in range(4):
        optimizer.zero_grad()
        loss(base).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    base.model.eval()
    assert loss(base).item() < before - 0.05

    digest = base_digest(base.model)
    save(adapter, tmp_path, Manifest(base=BaseRecord(path=str(tiny_model_dir), digest=digest)))
    other = load(tiny_model_dir, quantization, dtype)
    load_into(other.model, tmp_path)
    assert torch.equal(logits(other), logits(base))
    # It may be served on the base as it is, too.
    whole = load(tiny_model_dir, None, dtype)
    load_into(whole.model, tmp_path)
    assert loss(whole).item() < before - 0.05


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_quantised_base_is_known_by_its_files(
    quantization: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = load(Path(shutil.copytree(tiny_model_dir, tmp_path / "model")), quantization)
    inject(base.model, SPEC)
    assert base_digest(base.model) == base_digest(tiny_model_dir)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(InputError, match="a quantised model is known by the files"):
        base_digest(base.model)


@pytest.mark.parametrize("quantization", LIBRARIES)
def test_a_package_that_is_missing_is_named(
    quantization: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = LIBRARIES[quantization]
    monkeypatch.setitem(sys.modules, library, None)  # What Python has where it finds nothing.
    spec: dict[str, Any] = {"path": str(tiny_model_dir), "quantization": quantization}
    with pytest.raises(InputError, match=rf"needs {library}: in .*\[quantized\]"):
        check_base(ModelSpec.model_validate(spec))


@pytest.mark.parametrize("quantization", QUANTIZATIONS[:2])
def test_files_that_are_quantised_already(
    quantization: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "packed"))
    quantised = load(tiny_model_dir, quantization)
    quantised.model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    base = load(folder, None)
    assert torch.equal(logits(base), logits(quantised))
    inject(base.model, SPEC)
    assert base_digest(base.model) == base_digest(folder)
    with pytest.raises(InputError, match=r"are quantised already \(bitsandbytes\); leave it out"):
        load(folder, quantization)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        InputError, match="is quantised, which needs bitsandbytes: in moetune's clone"
    ):
        load(folder, None)
