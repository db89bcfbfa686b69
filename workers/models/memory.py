"""What a worker of a run holds in memory, by part, before anybody has loaded the base: an estimate.

Weights are counted in the model's skeleton; what layers keep for their backward pass is found by
one of them at work (workers.models.probe). Not counted: fragmentation, messages between workers, a
GPU's own context.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.config.attention import is_plain
from workers.config.model import ModelSpec
from workers.config.optimizers import OPTIMIZERS
from workers.config.parallel import ParallelSpec
from workers.config.train import TrainSpec
from workers.data.store.epoch_figures import LargestPass
from workers.injection.adapted_weight import plan_copies
from workers.injection.layer_kinds import layer_kinds
from workers.injection.targets import decoder_layers
from workers.layers.feed_forward import linear_sizes
from workers.losses.head_loss import piece_tokens
from workers.models.attention_choice import attention_choice
from workers.models.compatibility import base_config
from workers.models.device import settled
from workers.models.output_head import output_head
from workers.models.probe import LayerProbe, Pass, probe
from workers.models.skeleton import skeleton

PACKED = {"bnb_nf4": 0.5 + (1 + 4 / 256) / 64, "bnb_int8": 1.0, "torchao_int8": 1.0}
"""Bytes of a weight in a packed linear. Of NF4, 64 weights share a scale of a byte, and 256 of
those one of four."""
ADAPTER_BYTES = 4


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


def estimate(spec: TrainSpec, largest: LargestPass, data: int = 0) -> MemoryEstimate:
    """Of one worker of the most that the run may have; `data` are the bytes of its rows. Precision
    and device that the specification leaves open are this process's. InputError for a model whose
    layers do not run alone."""
    spec = spec.with_model(settled(spec.model))
    config = base_config(spec.model)
    model = skeleton(config)
    _, layers = decoder_layers(model)
    shapes = [spec.adapter.in_layer(at, len(layers)) for at in range(len(layers))]
    rows, length = largest.rows, largest.length
    known = spec.model.model_copy(update={"attention": _probed(spec, config)})
    kinds = list(zip(layer_kinds(layers, spec.adapter), shapes, strict=True))
    probes = {kind: probe(config, known, *kind, Pass(rows, length)) for kind in Counter(kinds)}
    each = [probes[kind] for kind in kinds]
    weights = sum(one.expert_weights for one in each) // spec.parallel.ep_size
    copied, of_head = _copied(model, spec)
    trained = ADAPTER_BYTES * (weights + sum(one.other_weights for one in each) + copied)
    number = int(getattr(torch, spec.model.dtype).itemsize)
    hidden = rows * length * model.config.get_text_config().hidden_size * number
    kept = [hidden if spec.model.activation_checkpointing else one.kept for one in each]
    workers = _sharing(spec.parallel)
    gradients = trained // workers["gradients"]
    logits = number * _scored(model, spec.model, largest)
    activations = _activations(each, kept, logits, recomputed=spec.model.activation_checkpointing)
    if _passes(spec, largest) == 1:  # else gradients are there from the first pass on
        activations = max(activations - (gradients - ADAPTER_BYTES * of_head), 0)
    activations += of_head * (ADAPTER_BYTES + (2 * number if number < ADAPTER_BYTES else 0))
    return MemoryEstimate(
        base=_base(model, layers, spec.model) // workers["base"] + _gathered(layers, spec),
        adapter=trained // workers["adapter"],
        gradients=gradients,
        optimizer=_moments(spec, trained // ADAPTER_BYTES) // workers["optimizer"],
        activations=max(activations - logits, 0),
        logits=min(logits, activations),
        data=data,
    )


def _copied(model: PreTrainedModel, spec: TrainSpec) -> tuple[int, int]:
    """Numbers in the copies of whole weights that the adapter trains; and in the head's, whose
    gradient is there at the loss already, twice for a moment, and where the base is narrower the
    copy and its gradient in its precision, too."""
    copies = plan_copies(model, spec.adapter.train_also)
    head = model.get_output_embeddings()
    numbers = {copy: copy.weight.numel() for copy in copies.values()}
    of_head = [copy for place, copy in copies.items() if place.bare is head]
    return sum(numbers.values()), sum(numbers[copy] for copy in of_head)


def _activations(
    each: Sequence[LayerProbe], kept: Sequence[int], logits: int, *, recomputed: bool
) -> int:
    """The most of a pass: at its loss, or in the backward pass of a layer."""
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
    on_gpu = spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())
    piece = piece_tokens(tokens, config.vocab_size, "cuda" if on_gpu else "cpu")
    return int(2 * min(piece, tokens) * config.vocab_size + 3 * tokens * config.hidden_size)


def _probed(spec: TrainSpec, config: PretrainedConfig) -> str:
    """What keeps as much as the run's attention does, and runs here: kernels keep no scores, nor
    does what packed rows get."""
    if spec.data.packing or not is_plain(spec.model.attention):
        return "sdpa"
    return attention_choice(spec.model, config, torch.device("cpu")).name


def _moments(spec: TrainSpec, weights: int) -> int:
    """Bytes of the optimizer's state for so many weights."""
    if spec.parallel.offload_optimizer:
        return 0
    kind = OPTIMIZERS[spec.optimizer.name]
    return int(weights * kind.bytes_of_weight(spec.optimizer.momentum, spec.adapter.rank))


def _base(model: PreTrainedModel, layers: Sequence[nn.Module], spec: ModelSpec) -> int:
    """Bytes of the frozen weights; linears of the decoder may be packed."""
    number = getattr(torch, spec.dtype).itemsize
    weights = sum(one.numel() for one in model.parameters())
    packed = sum(map(_in_linears, layers)) if spec.quantization else 0
    each = PACKED[spec.quantization] if spec.quantization else 0
    return int((weights - packed) * number + packed * each)


def _gathered(layers: Sequence[nn.Module], spec: TrainSpec) -> int:
    """Of a base in shards: the layer that is whole for the moment."""
    if _sharing(spec.parallel)["base"] == 1:
        return 0
    largest = max(sum(one.numel() for one in layer.parameters()) for layer in layers)
    return int(largest * getattr(torch, spec.model.dtype).itemsize)


def _in_linears(layer: nn.Module) -> int:
    sizes = map(linear_sizes, layer.modules())
    return sum(inside * out for inside, out in filter(None, sizes))


def _sharing(parallel: ParallelSpec) -> dict[str, int]:
    """Among how many workers each part is cut."""
    workers = parallel.max_workers
    stage = {"ddp": 0, "fsdp2": 3, "deepspeed": parallel.zero_stage}[parallel.strategy]
    cut = {"optimizer": 1, "gradients": 2, "adapter": 3, "base": 3}
    return {part: workers if stage >= least else 1 for part, least in cut.items()}
