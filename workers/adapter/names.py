"""Tensor names on disk (MixLoRA, MoELoRA, PEFT) and the layers' own stacked ones.

On disk every expert has its own matrices: lora_A.weight [R, in], lora_B.weight [out, R]. The
layers hold them stacked: lora_A [E, R, in], lora_B [E, out, R], with E = 1 for plain LoRA, under
`layers.{i}.{path}`, whatever the model calls its list of layers. Routers are [E, D] in both.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from workers.adapter.config import AdapterConfig, PeftType, peft_type
from workers.spec import AdapterSpec, InputError

Tensors = dict[str, torch.Tensor]

_INDEX = r"(?:0|[1-9]\d*)"
_ROUTED = (
    rf"\.layers\.(?P<layer>{_INDEX})\.(?P<path>[\w.]+?)"
    rf"(?:\.moe_gate|(?:\.experts\.(?P<expert>{_INDEX}))?\.lora_(?P<side>[AB]))\.weight"
)
PATTERNS: dict[PeftType, re.Pattern[str]] = {
    "MIXLORA": re.compile("mixlora" + _ROUTED),
    "MOELORA": re.compile("moelora" + _ROUTED),
    "LORA": re.compile(
        rf"base_model\.model\.(?P<list>[A-Za-z_.]+)\.(?P<layer>{_INDEX})\.(?P<path>[\w.]+)"
        r"\.lora_(?P<side>[AB])\.weight"
    ),
}


@dataclass(frozen=True)
class _Place:
    """One linear of one layer."""

    layer: int
    path: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.path}"

    @property
    def parent(self) -> "_Place":
        return _Place(self.layer, self.path.rpartition(".")[0])


class _Parts:
    """The tensors of a file, sorted by place."""

    def __init__(self, raw: Tensors, kind: PeftType, where: str) -> None:
        self.routers: dict[_Place, torch.Tensor] = {}
        self.matrices: dict[tuple[_Place, str], dict[int | None, torch.Tensor]] = defaultdict(dict)
        lists: set[str] = set()
        for name, tensor in raw.items():
            match = PATTERNS[kind].fullmatch(name)
            if match is None:
                raise InputError(f"{where}: tensor {name} is no part of a {kind} adapter")
            part = match.groupdict()
            lists.add(part.get("list") or "")
            place = _Place(int(part["layer"]), part["path"])
            if part["side"] is None:
                self.routers[place] = tensor
            else:
                expert = part.get("expert")
                index = None if expert is None else int(expert)
                self.matrices[place, part["side"]][index] = tensor
        if len(lists) > 1:
            raise InputError(f"{where}: adapts several layer lists: {', '.join(sorted(lists))}")
        self.layer_list = "".join(lists) or "layers"

    @property
    def places(self) -> list[_Place]:
        return list(dict.fromkeys(place for place, _ in self.matrices))


def to_canonical(raw: Tensors, config: AdapterConfig, where: str) -> tuple[Tensors, AdapterSpec]:
    """Stacked float32 tensors and the shape of the adapter that a file holds.

    Refuses what the file alone can show to be wrong; `files.load_into` compares with the model.
    """
    parts = _Parts(raw, config.peft_type, where)
    _check_routers(parts, config, where)
    spec = config.spec(_targets(parts, config, where), where)
    tensors = {f"{place}.router.weight": gate.float() for place, gate in parts.routers.items()}
    for place in parts.places:
        for side in "AB":
            found = parts.matrices.get((place, side), {})
            name = f"{place}.lora_{side}"
            tensors[name] = _stack(found, side, config, spec.rank, f"{where}: {name}")
    return tensors, spec


def to_disk(tensors: Mapping[str, torch.Tensor], spec: AdapterSpec, layer_list: str) -> Tensors:
    """The named tensors of a file. `layer_list` is the model's own path of its layers, as in
    `model.layers`, which PEFT's names hold."""
    kind = peft_type(spec)
    prefix = f"base_model.model.{layer_list}" if kind == "LORA" else f"{kind.lower()}.layers"
    raw: Tensors = {}
    for name, tensor in tensors.items():
        stem = name.replace("layers", prefix, 1)
        module, _, leaf = stem.rpartition(".")
        owner = name.rpartition(".")[0]
        if name.endswith(".router.weight"):
            raw[stem.removesuffix("router.weight") + "moe_gate.weight"] = tensor
        elif any(f"{o}.router.weight" in tensors for o in (owner, owner.rpartition(".")[0])):
            for expert, matrix in enumerate(tensor):
                raw[f"{module}.experts.{expert}.{leaf}.weight"] = matrix
        else:
            raw[f"{stem}.weight"] = tensor[0]
    return raw


def target_names(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the adapted linears, in the order of the first layer that has them."""
    linears = (name.rpartition(".")[0] for name in tensors if name.endswith(".lora_A"))
    return list(dict.fromkeys(linear.rpartition(".")[2] for linear in linears))


def _check_routers(parts: _Parts, config: AdapterConfig, where: str) -> None:
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


def _targets(parts: _Parts, config: AdapterConfig, where: str) -> tuple[str, ...]:
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
    inside = (re.sub(rf"^.*\.{_INDEX}\.", "", target) for target in config.targets)
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
