"""From the named tensors of a file to the stacked ones of the layers, every part checked.

E experts, R rank, D model width; see `names` for both layouts.
"""

import re

import torch
from torch.nn.functional import pad

from workers.adapter.config import AdapterConfig
from workers.adapter.names import INDEX, Parts, Tensors
from workers.spec import AdapterSpec, InputError


def to_canonical(raw: Tensors, config: AdapterConfig, where: str) -> tuple[Tensors, AdapterSpec]:
    """Stacked float32 tensors and the shape of the adapter that a file holds.

    Refuses what the file alone can show to be wrong; `files.load_into` compares with the model.
    """
    parts = Parts(raw, config.peft_type, where)
    _check_routers(parts, config, where)
    spec = config.spec(_targets(parts, config, where), where)
    tensors = {f"{place}.router.weight": gate.float() for place, gate in parts.routers.items()}
    for place in parts.places:
        for side in "AB":
            found = parts.matrices.get((place, side), {})
            name = f"{place}.lora_{side}"
            tensors[name] = _stack(found, side, config, spec.rank, f"{where}: {name}")
    return tensors, spec


def _check_routers(parts: Parts, config: AdapterConfig, where: str) -> None:
    """Every router has experts, every expert its router, and MoELoRA nothing else."""
    block = config.peft_type == "MIXLORA"
    wanted = set()
    for place in parts.places:
        experts = set().union(*(parts.matrices.get((place, side), {}) for side in "AB"))
        if experts != {None}:
            wanted.add(place.parent if block else place)
        elif config.peft_type == "MOELORA":
            raise InputError(f"{where}: {place} has no experts, but MOELORA routes every linear")
    for place in sorted(wanted ^ set(parts.routers), key=str):
        lacking = "its moe_gate.weight" if place in wanted else "experts for its moe_gate"
        raise InputError(f"{where}: {place} lacks {lacking}")
    for place, gate in parts.routers.items():
        if gate.ndim != 2 or gate.shape[0] != config.num_experts:
            raise InputError(
                f"{where}: {place}.moe_gate.weight has shape {list(gate.shape)}, "
                f"but num_experts is {config.num_experts}"
            )


def _targets(parts: Parts, config: AdapterConfig, where: str) -> tuple[str, ...]:
    """The adapted linears' names; those of the configuration must be those of the tensors."""
    if not parts.places:
        raise InputError(f"{where}: holds no LoRA matrices")
    if config.targets is None:
        return tuple(dict.fromkeys(place.path.rpartition(".")[2] for place in parts.places))
    # PEFT may also write a module's whole path, as in model.layers.0.mlp.up_proj.
    paths = [f"{parts.layer_list}.{place.layer}.{place.path}" for place in parts.places]
    for target in config.targets:
        if not any(_names(target, path) for path in paths):
            raise InputError(f"{where}: target_modules has {target}, but no tensor belongs to it")
    for path in paths:
        if not any(_names(target, path) for target in config.targets):
            raise InputError(f"{where}: has tensors for {path}, which target_modules lacks")
    inside = (re.sub(rf"^.*\.{INDEX}\.", "", target) for target in config.targets)
    return tuple(dict.fromkeys(inside))


def _names(target: str, path: str) -> bool:
    return f".{path}".endswith(f".{target}")


def _stack(
    found: dict[int | None, torch.Tensor], side: str, config: AdapterConfig, rank: int, where: str
) -> torch.Tensor:
    """One place's matrices as [E, R, in] or [E, out, R], padded with zeros to `rank`."""
    routed = None not in found
    keys: list[int | None] = list(range(config.num_experts)) if routed else [None]
    if set(found) != set(keys):
        missing = sorted(set(map(str, keys)) - set(map(str, found)))
        what = f"lacks expert {missing[0]}" if missing else "has experts beyond num_experts"
        raise InputError(f"{where}: {what if routed else 'has a plain matrix beside experts'}")
    stored = config.expert_rank if routed else config.r
    axis = 0 if side == "A" else 1
    shapes = {tuple(found[key].shape) for key in keys}
    shape = shapes.pop()
    if shapes or len(shape) != 2 or shape[axis] != stored:
        raise InputError(f"{where}: shape {list(shape)} does not fit rank {stored}")
    stacked = torch.stack([found[key] for key in keys]).float()
    if routed and side == "B" and (gain := config.expert_gain()) != 1:
        stacked = stacked * gain
    lack = rank - stored
    return pad(stacked, (0, 0, 0, lack) if side == "A" else (0, lack)) if lack else stacked
