"""A model of a configuration, without weights."""

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


def skeleton(
    config: PretrainedConfig, dtype: torch.dtype = torch.float32, attention: str | None = None
) -> PreTrainedModel:
    """The model without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    return model
