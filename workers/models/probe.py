"""What one decoder layer with an adapter keeps for its backward pass, counted where autograd keeps
it: the layer runs with random weights on random tokens, and the rest of the model has none.

Shapes: B rows, S positions, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError, one_line
from workers.config.model import ModelSpec
from workers.injection.inject import inject
from workers.injection.targets import decoder_layers
from workers.models.compatibility import typical_layer
from workers.models.padding import needs_mask
from workers.models.skeleton import skeleton

FLOPS = 2e10
"""A layer does not work more than this, a second at most; more tokens keep in proportion."""


@dataclass(frozen=True)
class LayerProbe:
    """Of a layer with an adapter."""

    kept: int
    """Bytes kept by each layer."""
    kept_once: int
    """Bytes that all layers share, such as the mask of attention."""
    expert_weights: int
    """Numbers in the adapter that experts have each for themselves."""
    other_weights: int


def probe(
    config: PretrainedConfig, model: ModelSpec, adapter: AdapterSpec, rows: int, length: int
) -> LayerProbe:
    """`adapter` is a layer's own specification; `rows` of `length` tokens are one forward pass."""
    bare = skeleton(config, getattr(torch, model.dtype), model.attention)
    path, layers = decoder_layers(bare)
    layer = typical_layer(layers, [adapter])
    weights = sum(weight.numel() for weight in layer.parameters())
    tokens = max(int(FLOPS / (2 * weights)), 16)
    rows_run = max(1, min(rows, tokens // length))
    length_run = min(length, tokens)
    _leave(bare, path, [layer])
    _fill(bare)
    put_on = inject(bare, adapter)
    experts = sum(one.numel() for _, one in put_on.named_expert_parameters())
    others = sum(one.numel() for one in put_on.parameters()) - experts
    once = _kept(bare, rows_run, length_run)
    _leave(bare, path, [layer] * 2)
    twice = _kept(bare, rows_run, length_run)
    share = rows * length / (rows_run * length_run)
    kept = twice - once
    return LayerProbe(round(kept * share), round((once - kept) * share), experts, others)


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


def _kept(model: PreTrainedModel, rows: int, length: int) -> int:
    """Bytes of all tensors that a forward pass keeps, weights aside."""
    config = model.config.get_text_config()
    dtype = next(model.base_model.parameters()).dtype
    hidden_BSD = torch.randn(rows, length, config.hidden_size, dtype=dtype, requires_grad=True)
    mask_BS = None
    if needs_mask(model.config):
        mask_BS = torch.ones(rows, length, dtype=torch.long)
        mask_BS[0, -1] = 0  # of padding, as nearly all batches have it
    model.train()
    with _counted(model) as sizes:
        try:
            model.base_model(inputs_embeds=hidden_BSD, attention_mask=mask_BS, use_cache=False)
        except Exception as error:  # a program of the model's: it may want anything
            raise InputError(f"its layers do not run alone: {one_line(error)}") from None
    return sum(sizes.values())


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by storage of what autograd keeps within the block, without weights and inputs."""
    weights = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> None:
        # Nothing is kept in the graph, which would never be freed: it would hold itself.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor.detach())  # its address is not given to another one meanwhile

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda _: torch.empty(0)):
        yield sizes
