"""Put adapters onto a Hugging Face model."""

from collections.abc import Iterator

import torch
from torch import nn

from workers.config.adapter import ALL_LINEAR, AdapterSpec, is_named
from workers.config.base import InputError
from workers.injection.adapter import Adapter
from workers.injection.mixed_batch import Layer
from workers.injection.row_map import RowMap
from workers.injection.sharded import whole
from workers.injection.targets import (
    TargetModule,
    decoder_layers,
    feed_forwards,
    linears,
    tree,
)
from workers.injection.wrapper import AdaptedModule
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward


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
            names = [name for name in view.linears if spec.adapts(f"{place.path}.{name}")]
            if names:
                _check_outer(place.path, view, names, spec)
                plan[place] = view, BlockExperts(view, spec, names)
            for name in view.linears:
                del found[f"{place.path}.{name}"]
    plain = spec if spec.experts == "linear" else spec.model_copy(update={"num_experts": 1})
    for place in found.values():
        if spec.adapts(place.path):
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
    known = sorted({path.split(".", 2)[2] for path in seen})
    for field in ("target_modules", "exclude_modules"):
        for said in _nowhere(getattr(spec, field), seen):
            raise InputError(f"{field}: {said}; there are {known}")
    if not plan:
        raise InputError("exclude_modules: leaves out every linear that target_modules name")
    fits_any_linear = spec.experts == "linear" or not spec.is_routed
    blocks = [layer for _, layer in plan.values() if isinstance(layer, BlockExperts)]
    if not fits_any_linear and not blocks:
        raise InputError(
            "target_modules: block experts need a linear of the feed-forward block among them; "
            f"there are {known}"
        )


def _nowhere(names: str | tuple[str, ...], seen: list[str]) -> Iterator[str]:
    """What of a specification is on no linear."""
    if isinstance(names, str):
        if names != ALL_LINEAR and not any(is_named(path, names) for path in seen):
            yield f"{names} matches no linear's path, such as {seen[0]}"
        return
    for name in names:
        if not any(is_named(path, (name,)) for path in seen):
            yield f"no linear is called {name}"
