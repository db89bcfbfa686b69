"""One slot's adapter on a model: its weights by name, what its routers do, and its removal.

Shapes: B batch, S sequence, T = B * S tokens, E experts, K top-k, R rank, I and O a linear's sizes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.copies import Copies, untied
from workers.injection.mixed_batch import Layer
from workers.injection.row_map import RowMap
from workers.injection.targets import TargetModule
from workers.injection.wrapper import AdaptedModule
from workers.layers.dispatch import TokenDispatcher
from workers.layers.experts import LinearExperts, Recorder
from workers.layers.ops.input_dropout import InputDropout
from workers.layers.routing.base import Router, Routing
from workers.layers.trained_rows import TrainedRows
from workers.layers.trained_weight import TrainedWeight


@dataclass(frozen=True)
class LayerRecord:
    """What one routed place did in one forward pass."""

    layer: str
    """Where, as in `layers.0.mlp` (linear experts: `layers.0.self_attn.q_proj`)."""
    routing: Routing
    mask_T: Tensor | None
    """True for real tokens; None if all are. Of a mixed batch, the adapter's own tokens only."""
    rank_space: tuple[Tensor, ...]
    """Rank space of each slot's expert, [T, K, R], one for each routed projection; zero in voids.
    What losses between experts compare."""


_Noted: TypeAlias = tuple[Routing, tuple[Tensor, ...], Tensor | None]


def _note(
    into: list[_Noted], routing: Routing, terms: Sequence[Tensor], token_t: Tensor | None
) -> None:
    into.append((routing, tuple(terms), token_t))


class Adapter:
    """One slot's adapter on a model. Canonical names: `layers.{i}.{path}.router.weight` [E, D],
    `layers.{i}.{path of the linear}.lora_A` [E, R, I] and `.lora_B` [E, O, R]; of what it trains
    copies of (`train_also`), the module's name and `.weight`; of rows that it trains
    (`train_tokens`), that and `.token_rows`."""

    def __init__(  # noqa: PLR0913, PLR0917 -- what `inject` has put onto the model
        self,
        slot: str,
        spec: AdapterSpec,
        rows: RowMap,
        layers: Mapping[TargetModule, Layer],
        layer_list: str,
        copies: Copies = MappingProxyType({}),
    ) -> None:
        self.slot = slot
        self.spec = spec
        self.layer_list = layer_list
        """The model's path of its decoder layers (`model.layers`), which PEFT's names hold."""
        self.rows = rows
        """Which rows of a batch are its own; shared with the model's other adapters."""
        self.inputs = InputDropout()
        """Dropout of what its linears read."""
        self._layers = dict(layers)
        self._copies = dict(copies)
        for layer in self._layers.values():
            if isinstance(layer, LinearExperts):
                layer.inputs = self.inputs

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters by canonical name."""
        for place, layer in self._layers.items():
            for name, parameter in layer.named_parameters():
                yield f"{place.path}.{name.removeprefix('projections.')}", parameter
        yield from self._copied_weights()

    def _copied_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """One for both of what the base ties."""
        seen: set[TrainedWeight | TrainedRows] = set()
        for place, copy in self._copies.items():
            if copy not in seen:
                yield f"{place.name}.{copy.leaf}", copy.own
            seen.add(copy)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Trainable parameters."""
        return (parameter for _, parameter in self.named_parameters())

    @property
    def layers(self) -> list[Layer]:
        """What stands at its places, in the model's order."""
        return list(self._layers.values())

    @property
    def modules(self) -> dict[str, AdaptedModule]:
        """What stands at its places in the model, by path, in the model's order."""
        modules = ((place.path, place.module) for place in self._layers)
        return {path: module for path, module in modules if isinstance(module, AdaptedModule)}

    @property
    def routers(self) -> dict[str, Router]:
        """Of its routed places, by path, in the model's order."""
        routers = ((place.path, layer.router) for place, layer in self._layers.items())
        return {path: router for path, router in routers if router is not None}

    def named_expert_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those with a row for each expert, which expert parallelism shares out."""
        for place, layer in self._layers.items():
            for name, parameter in layer.expert_parameters().items():
                yield f"{place.path}.{name.removeprefix('projections.')}", parameter

    def set_dispatcher(self, dispatcher: TokenDispatcher) -> None:
        """Say how tokens and experts of all layers come together."""
        for layer in self._layers.values():
            layer.dispatcher = dispatcher

    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters, detached, by canonical name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @property
    def copied(self) -> dict[str, str]:
        """Paths in the model of what it trains copies of (`train_also`), or rows (`train_tokens`),
        by name."""
        return {place.name: place.path for place in self._copies}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` in; names and shapes must match exactly, else nothing is changed."""
        own, tensors = self.state_dict(), untied(tensors, self._copies)
        for name in sorted(own.keys() ^ tensors.keys()):
            state = "is missing" if name in own else "does not belong to this adapter"
            raise InputError(f"adapter {self.slot}: tensor {name} {state}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise InputError(
                    f"adapter {self.slot}: tensor {name} is {list(tensor.shape)}, but must be "
                    f"{list(own[name].shape)}"
                )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    @contextmanager
    def record(
        self, mask_BS: Tensor | None = None, *, rank_space: bool = True
    ) -> Iterator[list[LayerRecord]]:
        """Collect a record of every routed place from the forward passes inside the block; they are
        there when it has ended, in the model's order.

        `mask_BS` marks real tokens. Where activations are checkpointed, run the backward pass
        outside the block, else the recomputation is recorded too. `rank_space=False` keeps less.
        In a batch of several adapters a record holds the tokens of this one.
        """
        records: list[LayerRecord] = []
        mask_T = None if mask_BS is None else mask_BS.reshape(-1).bool()
        # Each place has a list of its own, without its name: layers that see the same when they are
        # compiled share a graph.
        noted: dict[str, list[_Noted]] = {place.path: [] for place in self._layers}
        for place, layer in self._layers.items():
            layer.recorder = Recorder(partial(_note, noted[place.path]), rank_space)
        try:
            yield records
        finally:
            for layer in self._layers.values():
                layer.recorder = None
            for path, passes in noted.items():
                for routing, terms, token_t in passes:
                    own_T = mask_T if mask_T is None or token_t is None else mask_T[token_t]
                    records.append(LayerRecord(path, routing, own_T, terms))

    def remove(self) -> None:
        """Take the adapter off; the last one restores the model's own modules."""
        for place in (*self._layers, *self._copies):
            module = place.module
            assert isinstance(module, AdaptedModule)
            module.take_off(self.slot)
            if not module.adapters:
                setattr(place.owner, place.name, module.base)
        self._layers.clear()
        self._copies.clear()
        if self.slot in self.rows.slots:
            self.rows.slots.remove(self.slot)
