"""What an exported checkpoint holds: each tensor's name, shape, and how it comes about.

    W_e = W + s B_e A_e                     for each expert e of a block, in float32, rounded once

Nothing is read here but the heads of the base's files, so that sizes are known before anything is
written. Shapes: E experts, D width, F width of a feed-forward block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.adapter.files import AdapterFiles
from workers.adapter.stacked.names import MATRICES
from workers.adapter.stock.base_files import BaseFiles
from workers.adapter.stock.families import (
    DOWN,
    EMBEDDING,
    GATE,
    HEAD,
    SHARED_WIDTH,
    UP,
    ExpertTensor,
    Twin,
)
from workers.adapter.stock.fit import adapted_places
from workers.adapter.stock.own_weights import own_weights
from workers.adapter.stock.stored_experts import check_whole, stored_experts
from workers.adapter.stock.verdict import experts_and_slots
from workers.config.base import InputError
from workers.injection.targets import decoder_layers, weight_sizes


@dataclass(frozen=True)
class NewTensor:
    """One tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    """Computes it, in the working precision, or as it is stored."""
    kept: torch.dtype | None = None
    """The precision of what is no weight of the model, and is never rounded; None of a weight."""

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return torch.Size(self.shape).numel()

    def size(self, dtype: torch.dtype) -> int:
        """Its bytes, where weights are written in this precision."""
        return self.numbers * (self.kept or dtype).itemsize


class Merging:
    """A base's weights with an adapter's updates."""

    def __init__(
        self, base: BaseFiles, model: PreTrainedModel, files: AdapterFiles, where: str
    ) -> None:
        """`model` has the base's structure, and needs no weights; `where` names the adapter."""
        self._base, self._files, self._model = base, files, model
        self._names = base.names(model)
        self._work = torch.promote_types(base.dtype, torch.float32)
        layer_list, layers = decoder_layers(model)
        matrices = {path: sizes[2] for path, sizes in weight_sizes(layers).items()}
        named = {
            path: f"{layer_list}.{path.removeprefix('layers.')}" + (".weight" if one == 1 else "")
            for path, one in matrices.items()
        }
        stacked = {named[path] for path, several in matrices.items() if several > 1}
        self._stored_experts = stored_experts(base, model, stacked) if stacked else {}
        """What the files' tensors hold of stacked experts, by name on disk."""
        self._adapted = {
            named[f"layers.{path}"]: f"layers.{path}"
            for path in adapted_places(layers, files, where)
        }
        """Canonical place of the adapter's tensors, by the weight's name in the model."""
        self._own = own_weights(model, files, where)
        """What takes the place of the embedding's and the head's numbers, by name in the model."""
        for name in self._adapted:
            if name in stacked:
                check_whole(self._stored_experts, base, name, model.get_parameter(name).shape)
            elif name not in self._names:
                raise InputError(
                    f"{base.folder}: has no tensor {name}, which the adapter changes: its files "
                    "call it otherwise, or have it together with others"
                )

    def dense(self) -> Iterator[NewTensor]:
        """The base's own tensors, plain LoRA merged in."""
        inside = {on_disk: name for name, on_disk in self._names.items()}
        for on_disk, stored in self._base.stored.items():
            if on_disk in self._stored_experts:
                yield NewTensor(on_disk, stored.shape, partial(self._with_experts, on_disk))
            elif on_disk in inside:
                yield self._piece(on_disk, inside[on_disk], stored.shape)
            else:
                read = partial(self._base.read, on_disk)
                yield NewTensor(on_disk, stored.shape, read, stored.dtype)

    def sparse(self, twin: Twin) -> Iterator[NewTensor]:
        """The tensors of its sparse twin. A block without experts of its own becomes as many equal
        ones, which any router weighs to itself: every engine has experts in all layers or none."""
        for name, tensor in self._model.state_dict().items():
            layer, _, linear = name.removesuffix(".weight").rpartition(".mlp.")
            if not layer:
                yield self._piece(name, self._source(name), tuple(tensor.shape))
            elif linear == GATE:
                yield from self._block(twin, layer)
            elif linear not in (UP, DOWN):
                raise InputError(f"{self._base.folder}: {name} has no place in {twin.architecture}")

    def _with_experts(self, on_disk: str) -> Tensor:
        """What a tensor of the files holds of stacked experts, with their updates."""
        part = self._stored_experts[on_disk]
        weight, place = self._base.read(on_disk), self._adapted.get(part.name)
        if place is None:
            return weight
        lora_A, lora_B = (
            self._files.tensors[f"{place}.{leaf}"].to(self._work) for leaf in MATRICES
        )
        module = self._model.get_submodule(part.name.rpartition(".")[0])
        update = part.update(lora_A, lora_B, is_transposed=bool(module.is_transposed))
        merged: Tensor = weight.to(self._work) + self._files.spec.scale(lora_A.shape[-1]) * update
        return merged

    def _block(self, twin: Twin, layer: str) -> Iterator[NewTensor]:
        experts, _ = experts_and_slots(self._files.spec)
        place = f"{layer}.{twin.block}"
        _, model_width = self._shape(f"{layer}.mlp.{GATE}.weight")
        yield NewTensor(
            f"{place}.{twin.router}",
            (experts, model_width),
            lambda: self._router(layer, (experts, model_width)),
        )
        for expert in twin.experts:
            yield from self._experts(f"{place}.{expert.name}", layer, expert, experts)
        if twin.shared_expert:
            shared, shape = f"{place}.shared_expert", (SHARED_WIDTH, model_width)
            yield self._constant(f"{shared}.{GATE}.weight", shape, 0.0)
            yield self._constant(f"{shared}.{UP}.weight", shape, 0.0)
            yield self._constant(f"{shared}.{DOWN}.weight", shape[::-1], 0.0)
            # It weighs zeros. llama.cpp divides by its output, so that is not zero.
            gate = f"{place}.shared_expert_gate.weight"
            yield self._constant(gate, (1, model_width), 1.0)

    def _experts(
        self, name: str, layer: str, expert: ExpertTensor, experts: int
    ) -> Iterator[NewTensor]:
        sources = [f"{layer}.mlp.{linear}.weight" for linear in expert.linears]
        shapes = [self._shape(source) for source in sources]
        shape = (sum(rows for rows, _ in shapes), shapes[0][1])

        def one(index: int) -> Tensor:
            return torch.cat([self._merged(source, index) for source in sources])

        if expert.stacked:
            yield NewTensor(
                name, (experts, *shape), lambda: torch.stack([one(e) for e in range(experts)])
            )
            return
        for index in range(experts):
            yield NewTensor(name.format(e=index), shape, lambda index=index: one(index))  # type: ignore[misc]

    def _router(self, layer: str, shape: tuple[int, int]) -> Tensor:
        index = layer.rpartition(".")[2]
        router = self._files.tensors.get(f"layers.{index}.mlp.router.weight")
        if router is None:
            return torch.zeros(shape, dtype=self._work)
        return router.to(self._work) / self._files.spec.router_temperature

    def _piece(self, written: str, name: str, shape: tuple[int, ...]) -> NewTensor:
        """A tensor of the base, under the name that it is written by."""
        if name in self._adapted:
            return NewTensor(written, shape, lambda: self._merged(name, 0))
        on_disk = self._names.get(name, written)
        if on_disk not in self._base.stored:
            raise InputError(f"{self._base.folder}: its files lack {name}")
        if name in self._own:
            return NewTensor(written, shape, lambda: self._own[name](self._base.read(on_disk)))
        return NewTensor(written, shape, lambda: self._base.read(on_disk))

    def _merged(self, name: str, expert: int) -> Tensor:
        """A linear's weight with one expert's update."""
        weight = self._base.read(self._names[name]).to(self._work)
        place = self._adapted.get(name)
        if place is None:
            return weight
        lora_A, lora_B = (
            self._files.tensors[f"{place}.{leaf}"].to(self._work) for leaf in ("lora_A", "lora_B")
        )
        # An A that experts share, and plain LoRA, are stored once.
        update = lora_B[min(expert, len(lora_B) - 1)] @ lora_A[min(expert, len(lora_A) - 1)]
        update *= self._files.spec.scale(lora_A.shape[-1])
        module = self._model.get_submodule(name.removesuffix(".weight"))
        # transformers' Conv1D keeps its weight transposed.
        return weight + (update if isinstance(module, nn.Linear) else update.T)

    def _shape(self, name: str) -> tuple[int, int]:
        rows, columns = self._base.stored[self._names[name]].shape
        return rows, columns

    def _constant(self, name: str, shape: tuple[int, ...], value: float) -> NewTensor:
        return NewTensor(name, shape, lambda: torch.full(shape, value, dtype=self._work))

    def _source(self, name: str) -> str:
        """What the weight is a copy of. A tied head is written too, as not every engine looks
        whether it is tied; transformers itself unties one that lies in the files."""
        tied = bool(getattr(getattr(self._model, "config", None), "tie_word_embeddings", False))
        return EMBEDDING if name == HEAD and tied and name not in self._names else name
