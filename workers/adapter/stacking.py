"""From the named tensors of a file to the stacked ones of the layers, every part checked.

E experts, R rank, D model width; see `names` for both layouts.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from workers.adapter.config import AdapterConfig
from workers.adapter.copies import take_copies, with_rows
from workers.adapter.stacked.names import MATRICES, names_layers
from workers.adapter.stacked.parts import StackedPair, take_stacked
from workers.adapter.tensor_names import Parts, TensorPlace, Tensors
from workers.config.adapter import AdapterSpec, is_named
from workers.config.base import InputError

MAGNITUDE = "lora_magnitude"
MOST_PADDED_BYTES = 2**32
"""So large, or sixteen times what is stored, an adapter may become by its padding."""


class Canonical(NamedTuple):
    """What a file holds, in our words."""

    tensors: Tensors
    """Stacked float32 tensors by canonical name."""
    spec: AdapterSpec
    layer_list: str
    """The path in the model of what canonical names call `layers`, as PEFT's names have it; other
    formats call it `layers` too, whatever the model does."""


def to_canonical(raw: Tensors, config: AdapterConfig, where: str) -> Canonical:
    """The stacked tensors and the shape of the adapter that a file holds.

    Refuses what the file alone can show to be wrong; `files.load_into` compares with the model.
    """
    copies, raw = take_copies(raw, config, where)
    parts = Parts(raw, config.peft_type, where)
    stacked = take_stacked(parts, config, where)
    if not parts.places and not stacked:
        raise InputError(f"{where}: holds no LoRA matrices")
    targets = _targets(parts, config, where)
    shapes = {place: (parts.path(place), _is_routed(parts, place)) for place in parts.places}
    stored = [config.rank(*shape) for shape in shapes.values()]
    rank = max(stored + [pair.rank for pair in stacked.values()])
    spec = config.spec(targets, rank, where, _parameters(stacked, config))
    if spec.train_tokens and not spec.train_tokens_of:  # PEFT's list is of the embedding
        spec = spec.model_copy(update={"train_tokens_of": with_rows(copies)})
    _check_routers(parts, spec, where)
    sizes = [*_sizes(parts, dict(zip(shapes, stored, strict=True)))]
    sizes += [(pair.bytes, pair.rank) for pair in stacked.values()]
    _check_padding(sizes, rank, where)
    if spec.use_dora != any(leaf == MAGNITUDE for _, leaf in parts.stacks):
        state = "has none" if spec.use_dora else "has some"
        raise InputError(f"{where}: use_dora is {spec.use_dora}, but it {state} of its magnitudes")
    tensors = {f"{place}.router.weight": gate.float() for place, gate in parts.routers.items()}
    for place, shape in shapes.items():
        experts = spec.experts_in(place.layer, parts.layers) if shape[1] else 1
        for leaf in (*MATRICES, MAGNITUDE):
            found, name = parts.stack(place, leaf), f"{place}.{leaf}"
            if leaf == MAGNITUDE and not found:
                continue  # Not every linear has one; the model's layers know which.
            if leaf in MATRICES:
                _check_rank(found, leaf, config.rank(*shape), f"{where}: {name}")
            tensors[name] = _stack(found, experts, leaf, spec, f"{where}: {name}")
            if leaf in MATRICES:
                tensors[name] = _padded(tensors[name], leaf, spec.rank)
        tensors[f"{place}.lora_B"] *= config.scale(*shape) / config.scale("", routed=False)
    for place, pair in stacked.items():
        for leaf, matrix in zip(MATRICES, (pair.lora_A, pair.lora_B), strict=True):
            tensors[f"{place}.{leaf}"] = _padded(matrix, leaf, rank)
        own = config.scale(parts.path(place), routed=False) / config.scale("", routed=False)
        tensors[f"{place}.lora_B"] *= own
    return Canonical(tensors | copies, spec, parts.layer_list)


def _parameters(stacked: Mapping[TensorPlace, StackedPair], config: AdapterConfig) -> list[str]:
    """The adapted stacked weights' names, or whole canonical paths, where some of the
    configuration's are of single layers."""
    named = config.target_parameters or []
    if names_layers(named):
        return list(map(str, stacked))
    return [name for name in named if any(is_named(str(place), (name,)) for place in stacked)]


def _is_routed(parts: Parts, place: TensorPlace) -> bool:
    """Whether a linear has experts: an A that they share looks like plain LoRA's."""
    return any(set(parts.stack(place, leaf)) - {None} for leaf in MATRICES)


def _check_routers(parts: Parts, spec: AdapterSpec, where: str) -> None:
    """Every router has experts, every expert its router, and MoELoRA nothing else."""
    block = spec.experts == "block"
    wanted = set()
    for place in parts.places:
        if _is_routed(parts, place):
            wanted.add(place.parent if block else place)
        elif not block and spec.experts_in(place.layer, parts.layers) > 1:
            raise InputError(f"{where}: {place} has no experts, but MOELORA routes every linear")
    for place in sorted(wanted ^ set(parts.routers), key=str):
        lacking = "its moe_gate.weight" if place in wanted else "experts for its moe_gate"
        raise InputError(f"{where}: {place} lacks {lacking}")
    for place, gate in parts.routers.items():
        experts = spec.experts_in(place.layer, parts.layers)
        if gate.ndim != 2 or gate.shape[0] != experts:
            raise InputError(
                f"{where}: {place}.moe_gate.weight has shape {list(gate.shape)}, "
                f"but num_experts is {experts}"
            )


def _targets(parts: Parts, config: AdapterConfig, where: str) -> tuple[str, ...]:
    """The adapted linears' names; those of the configuration must be those of the tensors."""
    used = [target for target in config.targets or () if _has(parts, target)]
    # PEFT's may name more than a model has; whether it has them, `modules` asks the model.
    if config.peft_type != "LORA" and len(used) < len(config.targets or ()):
        lost = next(target for target in config.targets or () if target not in used)
        raise InputError(f"{where}: target_modules has {lost}, but no tensor belongs to it")
    for place in parts.places:
        if config.adapts_parameter(f"{parts.path(place)}.weight"):
            raise InputError(
                f"{where}: adapts {parts.path(place)}.weight, by target_parameters, which may name "
                "stacked experts only: LoRA of a router, say, is not supported"
            )
        if config.adapts(parts.path(place)) is False:
            raise InputError(
                f"{where}: has tensors for {parts.path(place)}, which its target_modules leave out"
            )
    if config.every_layer:
        return tuple(used)
    return tuple(map(str, sorted(parts.places, key=lambda place: (place.layer, place.path))))


def _has(parts: Parts, target: str) -> bool:
    return any(is_named(parts.path(place), (target,)) for place in parts.places)


def _stack(
    found: dict[int | None, torch.Tensor], experts: int, leaf: str, spec: AdapterSpec, where: str
) -> torch.Tensor:
    """One place's tensors of one leaf, stacked: [E, …]."""
    plain = experts == 1 or (spec.shared_a and leaf == "lora_A")
    keys: set[int | None] = {None} if plain else set(range(experts))
    if not found:
        raise InputError(f"{where}: is missing")
    if None in found and (not plain or len(found) > 1):
        raise InputError(f"{where}: has a plain matrix beside experts")
    if set(found) != keys:
        missing = [] if plain else sorted(keys - set(found), key=str)
        what = f"lacks expert {missing[0]}" if missing else "has experts beyond num_experts"
        raise InputError(f"{where}: {what}")
    shapes = {tuple(tensor.shape) for tensor in found.values()}
    if len(shapes) > 1:
        raise InputError(f"{where}: its experts have shapes {sorted(map(list, shapes))}")
    return torch.stack([found[None]] if plain else [found[e] for e in range(experts)]).float()


def _check_rank(found: dict[int | None, torch.Tensor], leaf: str, stored: int, where: str) -> None:
    """A matrix of another rank than the configuration says is from another adapter."""
    axis = MATRICES.index(leaf)
    for tensor in found.values():
        if tensor.ndim != 2 or tensor.shape[axis] != stored:
            shape = list(tensor.shape)
            raise InputError(f"{where}: shape {shape} does not fit rank {stored}")


def _sizes(parts: Parts, ranks: Mapping[TensorPlace, int]) -> Iterable[tuple[int, int]]:
    """Bytes and rank of the linears' matrices."""
    for (place, _), found in parts.stacks.items():
        yield 4 * sum(tensor.numel() for tensor in found.values()), ranks[place]


def _check_padding(sizes: Iterable[tuple[int, int]], most: int, where: str) -> None:
    """A small file whose ranks differ must not take all of the memory: bytes and ranks of its
    matrices."""
    stored, padded = 0, 0
    for size, rank in sizes:
        stored, padded = stored + size, padded + size * most // rank
    if padded > max(MOST_PADDED_BYTES, 16 * stored):
        raise InputError(
            f"{where}: its ranks differ too much: padded to the largest, {most}, it would take "
            f"{padded >> 30} GiB"
        )


def _padded(tensor: torch.Tensor, leaf: str, rank: int) -> torch.Tensor:
    """Stacked matrices with zeros up to `rank`."""
    lack = rank - tensor.shape[1 + MATRICES.index(leaf)]
    return pad(tensor, (0, 0, 0, lack) if leaf == "lora_A" else (0, lack)) if lack else tensor
