"""Whether an adapter fits a base model, asked before any weights are read."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from workers.inject import check_places
from workers.model import loading_options, readable
from workers.sites import decoder_layers
from workers.spec import AdapterSpec, ModelSpec


def check_fit(model: ModelSpec, adapter: AdapterSpec) -> None:
    """Raise InputError where `adapter` does not fit models of this configuration.

    Makes one decoder layer with random weights, and the rest of the model without any.
    """
    with readable(model):
        config = AutoConfig.from_pretrained(model.path, **loading_options(model))
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _, layers = decoder_layers(skeleton)
    first: nn.Module = layers[0].to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in first.parameters():
            weight.normal_(0.0, 0.05, generator=generator)
    check_places([first], adapter)
