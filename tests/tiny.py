"""A tiny random model and random adapters of it: what nearly all tests and the soak serve."""

import shutil
from pathlib import Path

from orchestrator.demo.tiny_model import write_model

__all__ = ["with_template", "write_adapter", "write_model"]


def write_adapter(
    model_folder: Path, folder: Path, seed: int, spread: float = 0.2, **fields: object
) -> Path:
    """An adapter of that model, its weights random and large enough to change most tokens. Fields
    are AdapterSpec's. With a `spread` of 1e30 its answers are not finite."""
    import torch
    from transformers import AutoModelForCausalLM

    from workers.adapter.digest import base_digest
    from workers.adapter.files import save
    from workers.adapter.manifest import BaseRecord, Manifest
    from workers.config.adapter import AdapterSpec
    from workers.injection.inject import inject

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    shape = {"num_experts": 4, "top_k": 2, "rank": 4, "alpha": 8.0, **fields}
    adapter = inject(model, AdapterSpec.model_validate(shape), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapter.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0.0, spread, generator=generator)
    base = BaseRecord(path=str(model_folder), digest=base_digest(model))
    save(adapter, folder, Manifest(base=base))
    return folder


def with_template(adapter: Path, folder: Path, template: str) -> Path:
    """A copy of an adapter that was trained with this chat template."""
    from workers.adapter.manifest import read_manifest, write_manifest

    shutil.copytree(adapter, folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    spec = {"data": {"chat_template": template}}
    write_manifest(folder, manifest.model_copy(update={"spec": spec}))
    return folder
