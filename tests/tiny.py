"""A tiny random model and random adapters of it: what nearly all tests and the soak serve."""

import shutil
from pathlib import Path

from orchestrator.demo.tiny_model import write_model

__all__ = ["with_template", "write_adapter", "write_mixture", "write_model"]

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""A mixture's stacked weights."""
ON_EXPERTS = {"num_experts": 1, "top_k": 1, "target_parameters": EXPERTS}
"""Fields of an adapter on them."""


def write_mixture(tokenizer: Path, folder: Path, family: str = "qwen3_moe") -> Path:
    """A random mixture of four experts (2 layers, width 64) with the tokenizer of another model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        **{"vocab_size": 260, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 64, "max_position_embeddings": 512},
        **{"eos_token_id": 2, "pad_token_id": 3, "bos_token_id": 0},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # larger than they are drawn: routers tell tokens apart
                    parameter.normal_(0.0, 0.15)
        model.save_pretrained(folder)
    for pattern in ("*token*", "chat_template*"):
        for file in tokenizer.glob(pattern):
            shutil.copy(file, folder)
    return folder


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
        elif not name.startswith("layers."):  # a copy of a whole weight
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
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
