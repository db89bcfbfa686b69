"""Whether adapter and rows fit a base model, asked before any weights are read."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from workers.inject import check_places
from workers.model import loading_options, readable
from workers.sites import decoder_layers
from workers.spec import InputError, TrainSpec


def check_fit(spec: TrainSpec) -> None:
    """Raise InputError where the adapter, or the longest row that the data may have, does not fit
    models of this configuration.

    Makes one decoder layer with random weights, and the rest of the model without any.
    """
    with readable(spec.model):
        config = AutoConfig.from_pretrained(spec.model.path, **loading_options(spec.model))
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context and spec.data.max_length > context:
        raise InputError(
            f"data.max_length is {spec.data.max_length}, but the base model reads at most "
            f"{context} tokens"
        )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _, layers = decoder_layers(skeleton)
    first: nn.Module = layers[0].to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in first.parameters():
            weight.normal_(0.0, 0.05, generator=generator)
    check_places([first], spec.adapter)
