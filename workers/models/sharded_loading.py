"""A frozen base in shards: read so that no worker ever holds it whole.

FSDP2: transformers cuts the model before it has weights, and each worker reads its own rows of the
files. ZeRO-3: DeepSpeed cuts every module as it is built; the first worker maps the files into its
memory and hands them out, one module after the other.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.config.parallel import ParallelSpec
from workers.injection.targets import decoder_layers
from workers.parallel.world import World


def shards_base(spec: ParallelSpec) -> bool:
    """Whether the base lies in shards over the workers of this process's run."""
    return spec.shards_base and World.current().size > 1


def reading(
    spec: ModelSpec, parallel: ParallelSpec, device: torch.device
) -> AbstractContextManager[dict[str, Any]]:
    """Options of a `from_pretrained` inside the block, which then reads the model in shards, or
    whole where the layout wants that: each weight right onto the device, so that the host's memory
    never holds the model once a worker. InputError for a model that cannot be cut."""
    if not shards_base(parallel):
        return nullcontext({"device_map": {"": device}})
    config = AutoConfig.from_pretrained(spec.path, revision=spec.revision or "main")
    if spec.quantization or getattr(config, "quantization_config", None):
        raise InputError(
            f"model.path: {spec.path}: packed weights cannot be cut into shards; with a quantised "
            "base parallel.strategy must be ddp, or deepspeed with zero_stage 1 or 2"
        )
    return _by_rows(config) if parallel.strategy == "fsdp2" else _partitioned(spec)


@contextmanager
def _by_rows(config: PretrainedConfig) -> Iterator[dict[str, Any]]:
    from transformers.distributed import DistributedConfig

    with torch.device("meta"):
        path, _ = decoder_layers(AutoModelForCausalLM.from_config(config))
    # By default it cuts `layers`, `embed_tokens` and `norm`, and has the rest in one piece: models
    # that call their layers otherwise would be gathered whole.
    plan = {f"{path}.*": "free_full_weight"}
    yield {"distributed_config": DistributedConfig(fsdp_size=World.current().size, fsdp_plan=plan)}


@contextmanager
def _partitioned(spec: ModelSpec) -> Iterator[dict[str, Any]]:
    from transformers.integrations import HfDeepSpeedConfig

    from workers.parallel.deepspeed import start

    start()
    # While this object lives, from_pretrained builds models in partitions: its one way to be told.
    told = HfDeepSpeedConfig(
        {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3, "memory_efficient_linear": False},
            "bf16": {"enabled": spec.dtype == "bfloat16"},
        }
    )
    yield {}
    del told
