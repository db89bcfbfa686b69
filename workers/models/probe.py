"""What one decoder layer with an adapter keeps for its backward pass, and what this takes beside
it, counted at every operation: the layer runs with random weights on random tokens, and the rest of
the model has none.

Shapes: B rows, S positions, D model width.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError, one_line
from workers.config.model import ModelSpec
from workers.injection.adapter import Adapter
from workers.injection.inject import inject
from workers.injection.plan import alone
from workers.injection.targets import decoder_layers
from workers.models.live_bytes import LiveBytes
from workers.models.padding import needs_mask
from workers.models.skeleton import skeleton

FLOPS = 1e10
"""A layer's forward pass does not work more than this: all passes take seconds. What more tokens
take is found from these and from half of them."""


class Pass(NamedTuple):
    """Rows of so many tokens each."""

    rows: int
    length: int


@dataclass(frozen=True)
class LayerProbe:
    """Of a layer with an adapter."""

    kept: int
    """Bytes kept by each layer."""
    kept_once: int
    """Bytes that all layers share, such as the mask of attention."""
    backward: int
    """Bytes that its backward pass takes beside what is kept, at the most."""
    expert_weights: int
    """Numbers in the adapter that experts have each for themselves."""
    other_weights: int


def probe(
    config: PretrainedConfig, model: ModelSpec, at: int, adapter: AdapterSpec, tokens: Pass
) -> LayerProbe:
    """Of decoder layer `at`, whose own specification `adapter` is, in one forward pass."""
    rows, length = tokens
    bare = skeleton(config, getattr(torch, model.dtype), model.attention)
    path, layers = decoder_layers(bare)
    layer = layers[at]
    weights = sum(weight.numel() for weight in layer.parameters())
    _leave(bare, path, [layer])
    _fill(bare)
    made = _put_on(bare, alone(layer, at, adapter))
    most = max(int(FLOPS / (2 * weights)), 32)
    with made.inputs.shared() if made else nullcontext():  # as a step does
        kept, once, backward = _extrapolated(
            partial(_measured, bare, path, [layer]), rows * length, min(rows * length, most), length
        )
    return LayerProbe(kept, once, backward, *_numbers(made))


def _put_on(model: PreTrainedModel, adapter: AdapterSpec | None) -> Adapter | None:
    if adapter is None:
        model.requires_grad_(False)
        return None
    return inject(model, adapter)


def _numbers(adapter: Adapter | None) -> tuple[int, int]:
    """Those that its experts have, and others."""
    if adapter is None:
        return 0, 0
    experts = sum(one.numel() for _, one in adapter.named_expert_parameters())
    return experts, adapter.num_parameters() - experts


def _extrapolated(
    measure: Callable[[int, int], list[int]], tokens: int, run: int, length: int
) -> list[int]:
    """What `measure` finds for so many tokens, in rows of a length, from so many that are run: some
    of it grows with tokens, some does not."""

    def found(some: int) -> tuple[int, list[int]]:
        rows = max(some // length, 1)
        return rows * min(length, some), measure(rows, min(length, some))

    many, large = found(run)
    if many >= tokens:
        return large
    few, small = found(many // 2)
    beyond = (tokens - many) / (many - few)
    return [round(two + (two - one) * beyond) for one, two in zip(small, large, strict=True)]


def _measured(
    model: PreTrainedModel, path: str, layer: list[nn.Module], rows: int, length: int
) -> list[int]:
    """Of one layer what is kept, what is kept once, and what its backward pass takes."""
    _leave(model, path, layer)
    once = _run(model, rows, length)
    _leave(model, path, layer * 2)
    twice = _run(model, rows, length)
    kept = twice.kept - once.kept
    return [kept, once.kept - kept, once.peak - once.kept]


def _leave(model: nn.Module, path: str, layers: list[nn.Module]) -> None:
    """Let the decoder have these layers only; one that is there twice runs twice."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers))


def _fill(model: PreTrainedModel) -> None:
    """Random weights for the decoder, but for its embedding, which may be half of a model."""
    embedding = model.get_input_embeddings()
    decoder = model.base_model
    for module in decoder.modules():
        if module is not embedding:
            module.to_empty(device="cpu", recurse=False)
    with torch.no_grad():
        for module in decoder.modules():
            if module is not embedding:
                for weight in module.parameters(recurse=False):
                    weight.normal_(0.0, 0.02)
                for buffer in module.buffers(recurse=False):
                    buffer.zero_()


class _Run(NamedTuple):
    """Bytes that one pass took, weights aside."""

    kept: int
    """Between its forward and its backward pass."""
    peak: int


def _run(model: PreTrainedModel, rows: int, length: int) -> _Run:
    config = model.config.get_text_config()
    dtype = next(model.base_model.parameters()).dtype
    hidden_BSD = torch.randn(rows, length, config.hidden_size, dtype=dtype, requires_grad=True)
    mask_BS = None
    if needs_mask(model.config):
        mask_BS = torch.ones(rows, length, dtype=torch.long)
        mask_BS[0, -1] = 0  # of padding, as nearly all batches have it
    model.train()
    with LiveBytes((*model.parameters(), *model.buffers())) as live:
        try:
            output = model.base_model(
                inputs_embeds=hidden_BSD * 1.0, attention_mask=mask_BS, use_cache=False
            )[0]
            kept = live.now
            torch.autograd.backward(output, torch.ones_like(output))
        except Exception as error:  # a program of the model's: it may want anything
            raise InputError(f"its layers do not run alone: {one_line(error)}") from None
    model.zero_grad()
    return _Run(kept, live.peak)
