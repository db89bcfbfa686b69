"""What a worker of a run, or of a pack of runs, holds in memory, by part, before anybody has loaded
the base: an estimate.

Weights are counted in the model's skeleton; what layers keep for their backward pass is found by
one of them at work (workers.models.probe). Not counted: fragmentation, messages between workers, a
GPU's own context.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.config.attention import is_plain
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec
from workers.data.store.epoch_figures import LargestPass
from workers.injection.layer_kinds import layer_kinds
from workers.injection.targets import decoder_layers
from workers.losses.head_loss import piece_tokens
from workers.models.attention_choice import attention_choice
from workers.models.compatibility import base_config
from workers.models.device import on_gpu, settled
from workers.models.output_head import output_head
from workers.models.probe import LayerProbe, Pass, probe
from workers.models.skeleton import skeleton
from workers.models.weight_bytes import TrainedWeights, base_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one worker, by what holds them."""

    base: int
    """Frozen weights."""
    adapter: int
    gradients: int
    optimizer: int
    """Its moments of each weight."""
    activations: int
    """What the layers keep for the backward pass, and what one layer's takes; beyond what gradients
    take, which come as these go."""
    logits: int
    """Of a piece's targets, with their gradient; and all targets' hidden states, with theirs."""
    data: int
    """The encoded rows."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        """Bytes by part, and `total`."""
        return {**asdict(self), "total": self.total}


def estimate(
    spec: TrainSpec, largest: LargestPass, data: int = 0, beside: Sequence[TrainSpec] = ()
) -> MemoryEstimate:
    """Of one worker of the most that the run may have; `data` are the bytes of its rows. `beside`
    are the other runs of its pack: each has as large passes, which are computed together. Precision
    and device that the specification leaves open are this process's. InputError for a model whose
    layers do not run alone."""
    spec, *others = (one.with_model(settled(spec.model)) for one in (spec, *beside))
    runs = [spec, *others]
    config = base_config(spec.model)
    model = skeleton(config)
    _, layers = decoder_layers(model)
    joint = replace(largest, rows=len(runs) * largest.rows)
    each = _probes(config, layers, runs, joint)
    trained = [
        TrainedWeights.of(model, run, [one.weights[at] for one in each])
        for at, run in enumerate(runs)
    ]
    logits = _itemsize(spec.model) * _scored(model, spec.model, joint)
    activations = _activations(each, _kept(each, model, spec, joint), logits, spec.model)
    for run, own in zip(runs, trained, strict=True):
        if _passes(run, largest) == 1:  # else gradients are there from the first pass on
            activations -= own.gradients - own.of_head
    activations = max(activations, 0) + sum(one.beside_head(spec.model) for one in trained)
    return MemoryEstimate(
        base=base_bytes(model, layers, spec),
        adapter=sum(one.adapter for one in trained),
        gradients=sum(one.gradients for one in trained),
        optimizer=sum(one.optimizer for one in trained),
        activations=max(activations - logits, 0),
        logits=min(logits, activations),
        data=data,
    )


def _probes(
    config: PretrainedConfig,
    layers: Sequence[nn.Module],
    runs: Sequence[TrainSpec],
    joint: LargestPass,
) -> list[LayerProbe]:
    """Of every layer. Those that are alike, for each run, are asked once."""
    attention = _probed(runs[0], config)
    known = runs[0].model.model_copy(update={"attention": attention})
    kinds = zip(*(layer_kinds(layers, run.adapter) for run in runs), strict=True)
    found: dict[object, LayerProbe] = {}
    each = []
    for at, kind in enumerate(kinds):
        own = tuple(run.adapter.in_layer(at, len(layers)) for run in runs)
        if (kind, own) not in found:
            found[kind, own] = probe(config, known, at, own, Pass(joint.rows, joint.length))
        each.append(found[kind, own])
    return each


def _kept(
    each: Sequence[LayerProbe], model: PreTrainedModel, spec: TrainSpec, joint: LargestPass
) -> list[int]:
    """Bytes that every layer keeps for the backward pass."""
    if not spec.model.activation_checkpointing:
        return [one.kept for one in each]
    width = model.config.get_text_config().hidden_size
    return [joint.rows * joint.length * width * _itemsize(spec.model)] * len(each)


def _itemsize(spec: ModelSpec) -> int:
    """Bytes of one of the base's numbers."""
    return int(getattr(torch, spec.dtype).itemsize)


def _activations(
    each: Sequence[LayerProbe], kept: Sequence[int], logits: int, spec: ModelSpec
) -> int:
    """The most of a pass: at its loss, or in the backward pass of a layer."""
    recomputed = spec.activation_checkpointing
    once = max(one.kept_once for one in each)
    backward = max(one.backward + (one.kept if recomputed else 0) for one in each)
    return sum(kept) + once + max(logits, backward)


def _passes(spec: TrainSpec, largest: LargestPass) -> int:
    """Of a step, with so many rows in the largest."""
    return -(-spec.optimizer.batch_size // (spec.parallel.max_workers * largest.rows))


def _scored(model: PreTrainedModel, spec: ModelSpec, largest: LargestPass) -> int:
    """Numbers of the logits that are there at once, and of what they are made of."""
    config = model.config.get_text_config()
    tokens = largest.rows * largest.scored
    if output_head(model) is None:  # of all positions, and the targets' are picked from them
        return int(2 * (largest.rows * largest.length + tokens) * config.vocab_size)
    piece = piece_tokens(tokens, config.vocab_size, "cuda" if on_gpu(spec) else "cpu")
    return int(2 * min(piece, tokens) * config.vocab_size + 3 * tokens * config.hidden_size)


def _probed(spec: TrainSpec, config: PretrainedConfig) -> str:
    """What keeps as much as the run's attention does, and runs here: kernels keep no scores, nor
    does what packed rows get."""
    if spec.data.packing or not is_plain(spec.model.attention):
        return "sdpa"
    return attention_choice(spec.model, config, torch.device("cpu")).name
