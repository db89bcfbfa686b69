"""Put adapters onto a Hugging Face model."""

from collections.abc import Mapping
from zlib import crc32

import torch
from torch import nn

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.adapted_stack import AdaptedStack
from workers.injection.adapted_weight import AdaptedWeight
from workers.injection.adapter import Adapter
from workers.injection.copies import plan_copies
from workers.injection.plan import View, plan
from workers.injection.row_map import RowMap
from workers.injection.targets import TargetModule, decoder_layers
from workers.injection.wrapper import AdaptedModule
from workers.layers.expert_stack import ExpertStack


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
        planned = plan(dict(enumerate(layers)), spec, len(layers))
    copies = plan_copies(model, spec)
    generator = torch.Generator().manual_seed(seed)
    if not rows.slots:
        model.requires_grad_(False)
    for place, (view, layer) in planned.items():
        layer.reset_parameters(generator)
        if not isinstance(place.module, AdaptedModule):
            setattr(place.owner, place.name, _adapted(place, rows, view))
        module = place.module
        assert isinstance(module, AdaptedModule)
        module.add(slot, layer)
    for place, copy in copies.items():
        if not isinstance(place.module, AdaptedWeight):
            setattr(place.owner, place.name, AdaptedWeight(place.module, rows))
        module = place.module
        assert isinstance(module, AdaptedWeight)
        module.add(slot, copy)
    rows.slots.append(slot)
    taken = {place: layer for place, (_, layer) in planned.items()}
    return Adapter(slot, spec, rows, taken, layer_list, copies)


def check_places(layers: Mapping[int, nn.Module], spec: AdapterSpec, count: int) -> list[str]:
    """Raise InputError where an adapter does not fit these of a model's `count` decoder layers, one
    of each kind; attaches nothing. The places that would have a router, as in `layers.0.mlp`."""
    planned = plan(layers, spec, count).items()
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


def _adapted(place: TargetModule, rows: RowMap, view: View) -> AdaptedModule:
    number = crc32(place.path.encode())
    if isinstance(view, ExpertStack):
        return AdaptedStack(place.module, rows, view, number)
    return AdaptedModule(place.module, rows, view, number)
