"""What one decoder layer keeps for its backward pass with its adapter, or those of several runs,
and what this takes beside it, counted at every operation: the layer runs with random weights on
random tokens, and the rest of the model has none.

Shapes: B rows, S positions, D model width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError, one_line
from workers.config.model import ModelSpec
from workers.injection.adapter import Adapter
from workers.injection.inject import inject, row_map
from workers.injection.plan import alone
from workers.injection.row_map import TokenPart
from workers.injection.targets import decoder_layers
from workers.models.device import on_gpu
from workers.models.live_bytes import LiveBytes
from workers.models.packing import keeps_rows_apart, packed_arguments, taking_packed_rows
from workers.models.padding import needs_mask
from workers.models.skeleton import skeleton

FLOPS = 1e10
"""A layer's forward pass does not work more than this: all passes take seconds. What more tokens
take is found from these and from half of them."""
FEWEST = 32
"""Tokens that a layer runs on, if a pass has so many."""
FEWEST_OF_A_RUN = 4


class Pass(NamedTuple):
    """Rows of so many tokens each."""

    rows: int
    length: int


class Weights(NamedTuple):
    """Numbers of one adapter."""

    of_experts: int
    """That experts have each for themselves."""
    others: int


@dataclass(frozen=True)
class LayerProbe:
    """Of a layer with an adapter, or those of several runs."""

    kept: int
    """Bytes kept by each layer."""
    kept_once: int
    """Bytes that all layers share, such as the mask of attention."""
    backward: int
    """Bytes that its backward pass takes beside what is kept, at the most."""
    weights: tuple[Weights, ...]
    """Of each adapter."""


def probe(
    config: PretrainedConfig,
    model: ModelSpec,
    at: int,
    adapters: Sequence[AdapterSpec],
    tokens: Pass,
) -> LayerProbe:
    """Of decoder layer `at` in one forward pass. `adapters` are the layer's own specifications, one
    for each run that has an equal part of the tokens."""
    rows, length = tokens
    bare = skeleton(config, getattr(torch, model.dtype), model.attention)
    path, layers = decoder_layers(bare)
    layer = layers[at]
    weights = sum(weight.numel() for weight in layer.parameters())
    _leave(bare, path, [layer])
    _fill(bare)
    masked = needs_mask(bare.config)
    in_one_row = len(adapters) > 1 and not masked and keeps_rows_apart(bare)
    made = _put_on(bare, [alone(layer, at, one) for one in adapters])
    most = max(int(FLOPS / (2 * weights)), FEWEST, FEWEST_OF_A_RUN * len(adapters))
    lone = _LoneLayer(bare, path, layer, made, masked, in_one_row, apart=not on_gpu(model))
    kept, once, backward = _extrapolated(
        lone.measured, rows * length, min(rows * length, most), length
    )
    return LayerProbe(kept, once, backward, tuple(map(_numbers, made)))


Attached = Sequence[Adapter | None]
"""The adapter of each run; None where it has none on the layer."""


def _put_on(model: PreTrainedModel, adapters: Sequence[AdapterSpec | None]) -> Attached:
    model.requires_grad_(False)
    return [
        None if one is None else inject(model, one, slot=f"run {number}")
        for number, one in enumerate(adapters)
    ]


def _numbers(adapter: Adapter | None) -> Weights:
    if adapter is None:
        return Weights(0, 0)
    experts = sum(one.numel() for _, one in adapter.named_expert_parameters())
    return Weights(experts, adapter.num_parameters() - experts)


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


@dataclass(frozen=True)
class _LoneLayer:
    """A decoder layer in its model, which has no other."""

    model: PreTrainedModel
    path: str
    """Of the model's list of layers."""
    layer: nn.Module
    made: Attached
    masked: bool
    """Whether padding needs a mask."""
    in_one_row: bool
    """Whether rows follow one another, as those of several runs do (workers.train.packed)."""
    apart: bool
    """Whether each run then computes by itself."""

    def measured(self, rows: int, length: int) -> list[int]:
        """What is kept, what is kept once, and what the backward pass takes."""
        with self._attending(rows, length):
            _leave(self.model, self.path, [self.layer])
            once = _run(self.model, *self._given(rows, length))
            _leave(self.model, self.path, [self.layer] * 2)
            twice = _run(self.model, *self._given(rows, length))
        kept = twice.kept - once.kept
        return [kept, once.kept - kept, once.peak - once.kept]

    def _given(self, rows: int, length: int) -> tuple[tuple[int, int], dict[str, Any]]:
        """The pass's rows and positions, and its arguments."""
        if self.in_one_row:
            lengths = (length,) * rows
            return (1, rows * length), packed_arguments(self.model, lengths, torch.device("cpu"))
        mask_BS = None
        if self.masked:
            mask_BS = torch.ones(rows, length, dtype=torch.long)
            mask_BS[0, -1] = 0  # of padding, as nearly all batches have it
        return (rows, length), {"attention_mask": mask_BS}

    @contextmanager
    def _attending(self, rows: int, length: int) -> Iterator[None]:
        """As a run's step does it, or a joint step of several."""
        if len(self.made) == 1:
            with self.made[0].inputs.shared() if self.made[0] else nullcontext():
                yield
            return
        slots = [None if one is None else one.slot for one in self.made]
        sequence_T = torch.arange(rows).repeat_interleave(length)
        shares = zip(slots, sequence_T.tensor_split(len(slots)), strict=True)
        parts = [TokenPart(slot, len(own_t), 0, own_t) for slot, own_t in shares]
        slots_T = [part.slot for part in parts for _ in range(part.tokens)]
        rows_of = row_map(self.model)
        whole = rows_of.training(slots_T, sequence_T, dict.fromkeys(slots, 0))
        with (
            taking_packed_rows(self.model) if self.in_one_row else nullcontext(),
            rows_of.apart(parts) if self.in_one_row and self.apart else whole,
        ):
            yield


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


def _run(model: PreTrainedModel, shape: tuple[int, int], arguments: Mapping[str, Any]) -> _Run:
    config = model.config.get_text_config()
    dtype = next(model.base_model.parameters()).dtype
    hidden_BSD = torch.randn(*shape, config.hidden_size, dtype=dtype, requires_grad=True)
    model.train()
    with LiveBytes((*model.parameters(), *model.buffers())) as live:
        try:
            output = model.base_model(inputs_embeds=hidden_BSD * 1.0, use_cache=False, **arguments)[
                0
            ]
            kept = live.now
            torch.autograd.backward(output, torch.ones_like(output))
        except Exception as error:  # a program of the model's: it may want anything
            raise InputError(f"its layers do not run alone: {one_line(error)}") from None
    model.zero_grad()
    return _Run(kept, live.peak)
