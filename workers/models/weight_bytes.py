"""Bytes of a worker's weights, and of what its optimizer keeps of them, counted in the model's
skeleton."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.config.model import ModelSpec
from workers.config.optimizers import OPTIMIZERS
from workers.config.parallel import ParallelSpec
from workers.config.train import TrainSpec
from workers.injection.copies import plan_copies
from workers.layers.feed_forward import linear_sizes
from workers.models.probe import Weights

PACKED = {"bnb_nf4": 0.5 + (1 + 4 / 256) / 64, "bnb_int8": 1.0, "torchao_int8": 1.0}
"""Bytes of a weight in a packed linear. Of NF4, 64 weights share a scale of a byte, and 256 of
those one of four."""


ADAPTER_BYTES = 4


@dataclass(frozen=True)
class TrainedWeights:
    """Bytes of what a run trains, on one worker."""

    adapter: int
    gradients: int
    optimizer: int
    of_head: int
    """Of the gradients: the copied output head's, which is there at the loss already."""

    @classmethod
    def of(
        cls, model: PreTrainedModel, spec: TrainSpec, layers: Iterable[Weights]
    ) -> "TrainedWeights":
        """`layers` are those of the adapter in each of them."""
        each, workers = [*layers], _sharing(spec.parallel)
        copied, of_head = _copied(model, spec)
        experts = sum(one.of_experts for one in each) // spec.parallel.ep_size
        numbers = experts + sum(one.others for one in each) + copied
        trained = ADAPTER_BYTES * numbers
        return cls(
            trained // workers["adapter"],
            trained // workers["gradients"],
            _moments(spec, numbers) // workers["optimizer"],
            ADAPTER_BYTES * of_head,
        )

    def beside_head(self, spec: ModelSpec) -> int:
        """Bytes at the loss of a copied output head: its gradient is there twice for a moment, and
        where the base is narrower the copy and its gradient in its precision, too."""
        number = getattr(torch, spec.dtype).itemsize
        narrow = 2 * number if number < ADAPTER_BYTES else 0
        return self.of_head + int(self.of_head // ADAPTER_BYTES * narrow)


def base_bytes(model: PreTrainedModel, layers: Sequence[nn.Module], spec: TrainSpec) -> int:
    """Of the frozen weights on one worker; linears of the decoder may be packed."""
    kind, number = spec.model.quantization, getattr(torch, spec.model.dtype).itemsize
    weights = sum(one.numel() for one in model.parameters())
    packed = sum(map(_in_linears, layers)) if kind else 0
    each = PACKED[kind] if kind else 0
    whole = int((weights - packed) * number + packed * each)
    return whole // _sharing(spec.parallel)["base"] + _gathered(layers, spec)


def _copied(model: PreTrainedModel, spec: TrainSpec) -> tuple[int, int]:
    """Numbers of the base's weights that the adapter trains itself, and those of the head's."""
    copies = plan_copies(model, spec.adapter)
    head = model.get_output_embeddings()
    numbers = {copy: copy.own.numel() for copy in copies.values()}
    of_head = [copy for place, copy in copies.items() if place.bare is head]
    return sum(numbers.values()), sum(numbers[copy] for copy in of_head)


def _moments(spec: TrainSpec, weights: int) -> int:
    """Bytes of the optimizer's state for so many weights."""
    if spec.parallel.offload_optimizer:
        return 0
    kind = OPTIMIZERS[spec.optimizer.name]
    return int(weights * kind.bytes_of_weight(spec.optimizer.momentum, spec.adapter.rank))


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
