"""Put adapters onto a Hugging Face model, and take them off again.

Shapes: B batch, S sequence, T = B * S tokens, E experts, K top-k, R rank, I and O a linear's sizes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec, is_named
from workers.config.base import InputError
from workers.injection.mixed_batch import Layer
from workers.injection.row_map import RowMap
from workers.injection.sharded import whole
from workers.injection.targets import (
    TargetModule,
    decoder_layers,
    feed_forwards,
    linears,
    tree,
    wanted,
)
from workers.injection.wrapper import AdaptedModule
from workers.layers.dispatch import TokenDispatcher
from workers.layers.experts import BlockExperts, LinearExperts, Recorder
from workers.layers.feed_forward import FeedForward
from workers.layers.routing.base import Router, Routing


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


class Adapter:
    """One slot's adapter on a model. Canonical names: `layers.{i}.{path}.router.weight` [E, D],
    `layers.{i}.{path of the linear}.lora_A` [E, R, I] and `.lora_B` [E, O, R]."""

    def __init__(
        self,
        slot: str,
        spec: AdapterSpec,
        rows: RowMap,
        layers: Mapping[TargetModule, Layer],
        layer_list: str,
    ) -> None:
        self.slot = slot
        self.spec = spec
        self.layer_list = layer_list
        """The model's path of its decoder layers (`model.layers`), which PEFT's names hold."""
        self.rows = rows
        """Which rows of a batch are its own; shared with the model's other adapters."""
        self._layers = dict(layers)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters by canonical name."""
        for place, layer in self._layers.items():
            for name, parameter in layer.named_parameters():
                yield f"{place.path}.{name.removeprefix('projections.')}", parameter

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

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` in; names and shapes must match exactly, else nothing is changed."""
        own = self.state_dict()
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
        """Collect a record of every routed place from the forward passes inside the block.

        `mask_BS` marks real tokens. Where activations are checkpointed, run the backward pass
        outside the block, else the recomputation is recorded too. `rank_space=False` keeps less.
        In a batch of several adapters a record holds the tokens of this one.
        """
        records: list[LayerRecord] = []
        mask_T = None if mask_BS is None else mask_BS.reshape(-1).bool()

        def note(
            path: str, routing: Routing, terms: Sequence[Tensor], token_t: Tensor | None
        ) -> None:
            own_T = mask_T if mask_T is None or token_t is None else mask_T[token_t]
            records.append(LayerRecord(path, routing, own_T, tuple(terms)))

        for place, layer in self._layers.items():
            layer.recorder = Recorder(partial(note, place.path), rank_space)
        try:
            yield records
        finally:
            for layer in self._layers.values():
                layer.recorder = None

    def remove(self) -> None:
        """Take the adapter off; the last one restores the model's own modules."""
        for place in self._layers:
            module = place.module
            assert isinstance(module, AdaptedModule)
            module.take_off(self.slot)
            if not module.adapters:
                setattr(place.owner, place.name, module.base)
        self._layers.clear()
        if self.slot in self.rows.slots:
            self.rows.slots.remove(self.slot)


def inject(
    model: nn.Module,
    spec: AdapterSpec,
    *,
    slot: str = "default",
    seed: int = 0,
    rows: RowMap | None = None,
) -> Adapter:
    """Attach a fresh adapter to `model`, which is frozen; it changes nothing until it is trained.

    Its weights depend on `seed` alone. `rows` is the map of a model whose adapters come and go, as
    its owner keeps it; without one, it is that of the adapters that are there, or a new one.
    Further calls, with other slots, share the adapted modules.
    """
    rows = _agreed(_there(model), rows)
    if slot in rows.slots:
        raise InputError(f"slot {slot!r} has an adapter already")
    layer_list, layers = decoder_layers(model)
    with rows.everywhere(None):
        planned = _plan(layers, spec)
    generator = torch.Generator().manual_seed(seed)
    if not rows.slots:
        model.requires_grad_(False)
    for place, (view, layer) in planned.items():
        layer.reset_parameters(generator)
        if not isinstance(place.module, AdaptedModule):
            setattr(place.owner, place.name, AdaptedModule(place.module, rows, view))
        module = place.module
        assert isinstance(module, AdaptedModule)
        module.add(slot, layer)
    rows.slots.append(slot)
    taken = {place: layer for place, (_, layer) in planned.items()}
    return Adapter(slot, spec, rows, taken, layer_list)


def check_places(layers: list[nn.Module], spec: AdapterSpec) -> list[str]:
    """Raise InputError where an adapter does not fit these decoder layers; attaches nothing. The
    places that would have a router, as in `layers.0.mlp`."""
    planned = _plan(layers, spec).items()
    return [place.path for place, (_, layer) in planned if layer.router is not None]


def row_map(model: nn.Module) -> RowMap:
    """The RowMap that the adapters on `model` share; an unused one where there is none."""
    return _there(model) or RowMap()


def _there(model: nn.Module) -> RowMap | None:
    """The map is kept by the modules that read it; the model itself is not ours to write on."""
    ours = (module.rows for module in model.modules() if isinstance(module, AdaptedModule))
    return next(ours, None)


def _agreed(there: RowMap | None, asked: RowMap | None) -> RowMap:
    if there is not None and asked is not None and there is not asked:
        raise InputError("the adapters on this model read another row map")
    return there or asked or RowMap()


Plan = dict[TargetModule, tuple[FeedForward | None, Layer]]


def _plan(layers: list[nn.Module], spec: AdapterSpec) -> Plan:
    """The new layers and where they go."""
    plan: Plan = {}
    seen: list[str] = []
    for index, layer in enumerate(layers):
        path, own = f"layers.{index}", spec.in_layer(index, len(layers))
        with whole(layer):  # What a block is, it shows by running; DoRA starts from its weights.
            found = {place.path: place for place in linears(layer, path)}
            seen += found
            plan |= _plan_layer(layer, path, own, found)
    if not seen:
        raise InputError(
            "the decoder's layers have no linear that an adapter fits (a torch.nn.Linear, or a "
            f"Conv1D of transformers): {tree(layers[0])}"
        )
    _check(plan, seen, spec)
    return plan


def _plan_layer(
    layer: nn.Module, path: str, spec: AdapterSpec, found: dict[str, TargetModule]
) -> Plan:
    """Those of one decoder layer, whose linears are `found`."""
    plan: Plan = {}
    if spec.experts == "block" and spec.is_routed:
        for place, view in feed_forwards(layer, path).items():
            names = [name for name in view.linears if wanted(f"{place.path}.{name}", spec)]
            if names:
                _check_outer(place.path, view, names, spec)
                plan[place] = view, BlockExperts(view, spec, names)
            for name in view.linears:
                del found[f"{place.path}.{name}"]
    plain = spec if spec.experts == "linear" else spec.model_copy(update={"num_experts": 1})
    for place in found.values():
        if wanted(place.path, spec):
            plan[place] = None, LinearExperts(place.bare, plain)
    return plan


def _check_outer(path: str, view: FeedForward, names: list[str], spec: AdapterSpec) -> None:
    outer = view.outer[0]
    if spec.use_dora and outer in names:
        raise InputError(
            f"use_dora: block experts run {path}.{outer} once for the sum of their outputs, so it "
            f"has no magnitude for each; name target_modules without it, such as {list(view.inner)}"
        )


def _check(plan: Plan, seen: list[str], spec: AdapterSpec) -> None:
    names = () if spec.target_modules == "all-linear" else spec.target_modules
    known = sorted({path.split(".", 2)[2] for path in seen})
    for name in names:
        if not any(is_named(path, (name,)) for path in seen):
            raise InputError(f"target_modules: no linear is called {name}; there are {known}")
    fits_any_linear = spec.experts == "linear" or not spec.is_routed
    blocks = [layer for _, layer in plan.values() if isinstance(layer, BlockExperts)]
    if not fits_any_linear and not blocks:
        raise InputError(
            "target_modules: block experts need a linear of the feed-forward block among them; "
            f"there are {known}"
        )
