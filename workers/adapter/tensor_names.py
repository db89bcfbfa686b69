"""Tensor names on disk (MixLoRA, MoELoRA, PEFT): taken apart, and made for what is saved.

On disk every expert has its own tensors: lora_A.weight [R, in], lora_B.weight [out, R] and with
DoRA lora_magnitude_vector [out]. The layers hold them stacked: lora_A [E, R, in], lora_B
[E, out, R], lora_magnitude [E, out], with E = 1 for plain LoRA and for an A that all experts share,
under `layers.{i}.{path}`, whatever the model calls its list of layers. Routers are [E, D] in both.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workers.adapter.config import PeftType
from workers.adapter.stacked.names import stacked_paths, to_wrappers
from workers.adapter.targets import INDEX
from workers.adapter.written import peft_type
from workers.config.adapter import ALL_LINEAR, AdapterSpec
from workers.config.base import InputError

Tensors = dict[str, torch.Tensor]

_LEAF = r"(?:(?P<leaf>lora_[AB])\.weight|(?P<magnitude>lora_magnitude)_vector(?:\.weight)?)"
_ROUTED = (
    rf"\.layers\.(?P<layer>{INDEX})\.(?P<path>[\w.]{{1,200}}?)"
    rf"(?:\.moe_gate\.weight|(?:\.experts\.(?P<expert>{INDEX}))?\.{_LEAF})"
)
ON_DISK = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_magnitude": "lora_magnitude_vector",
}
PATTERNS: dict[PeftType, re.Pattern[str]] = {
    "MIXLORA": re.compile("mixlora" + _ROUTED),
    "MOELORA": re.compile("moelora" + _ROUTED),
    "LORA": re.compile(
        r"base_model\.model\.(?P<list>[A-Za-z_.]+)"
        rf"\.(?P<layer>{INDEX})\.(?P<path>[\w.]{{1,200}})\.{_LEAF}"
    ),
}


@dataclass(frozen=True)
class TensorPlace:
    """One linear of one layer."""

    layer: int
    path: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.path}"

    @property
    def parent(self) -> "TensorPlace":
        """The module that holds the linear: a feed-forward block's router lies there."""
        return TensorPlace(self.layer, self.path.rpartition(".")[0])


class Parts:
    """The tensors of a file, sorted by place."""

    def __init__(self, raw: Tensors, kind: PeftType, where: str) -> None:
        self.routers: dict[TensorPlace, torch.Tensor] = {}
        self.stacks: dict[tuple[TensorPlace, str], dict[int | None, torch.Tensor]] = defaultdict(
            dict
        )
        """By place and canonical leaf: the tensor of each expert, None for a plain one."""
        lists: set[str] = set()
        for name, tensor in raw.items():
            match = PATTERNS[kind].fullmatch(name)
            if match is None:
                raise InputError(f"{where}: tensor {name:.200} is no part of a {kind} adapter")
            part = match.groupdict()
            lists.add(part.get("list") or "")
            place = TensorPlace(int(part["layer"]), part["path"])
            leaf, expert = part["leaf"] or part["magnitude"], part.get("expert")
            index = None if expert is None else int(expert)
            if leaf is None:
                self.routers[place] = tensor
            elif index in self.stacks[place, leaf]:  # With and without its .weight.
                raise InputError(f"{where}: tensor {name} is there twice")
            else:
                self.stacks[place, leaf][index] = tensor
        if len(lists) > 1:
            raise InputError(f"{where}: adapts several layer lists: {', '.join(sorted(lists))}")
        self.layer_list = "".join(lists) or "layers"

    def stack(self, place: TensorPlace, leaf: str) -> dict[int | None, torch.Tensor]:
        """The tensors of one leaf, empty if it is not there."""
        return self.stacks.get((place, leaf), {})

    def path(self, place: TensorPlace) -> str:
        """A place by its name in the model, as PEFT writes it."""
        return f"{self.layer_list}.{place.layer}.{place.path}"

    @property
    def layers(self) -> int:
        """Number of the model's layers, if the last one has an adapter."""
        return 1 + max(place.layer for place in self.places)

    @property
    def places(self) -> list[TensorPlace]:
        """Every adapted linear, in the file's order."""
        return list(dict.fromkeys(place for place, _ in self.stacks))


def to_disk(tensors: Mapping[str, torch.Tensor], spec: AdapterSpec, layer_list: str) -> Tensors:
    """The named tensors of a file. `layer_list` is the model's own path of its layers, as in
    `model.layers`, which PEFT's names hold."""
    kind = peft_type(spec)
    prefix = f"base_model.model.{layer_list}" if kind == "LORA" else f"{kind.lower()}.layers"
    raw: Tensors = {}
    stacked = stacked_paths(tensors, spec)
    for name, tensor in to_wrappers(tensors, stacked).items():
        raw[name.replace("layers", prefix, 1)] = tensor
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] in stacked:
            continue
        module, _, leaf = name.replace("layers", prefix, 1).rpartition(".")
        owner = name.rpartition(".")[0]
        routed = any(f"{o}.router.weight" in tensors for o in (owner, owner.rpartition(".")[0]))
        if name.endswith(".router.weight"):
            raw[f"{module.removesuffix('router')}moe_gate.weight"] = tensor
        elif routed and not (spec.shared_a and leaf == "lora_A"):
            for expert, part in enumerate(tensor):
                raw[f"{module}.experts.{expert}.{ON_DISK[leaf]}"] = part
        else:
            raw[f"{module}.{ON_DISK[leaf]}"] = tensor[0]
    return raw


def target_names(tensors: Mapping[str, torch.Tensor], spec: AdapterSpec) -> list[str]:
    """What the adapted linears are called, in the order of the first layer that has them: their
    names, where they are all linears of their layers. Of a part of them, their paths in a layer;
    or whole paths, where layers differ."""
    stacked = stacked_paths(tensors, spec)
    adapted = [name.rpartition(".")[0] for name in tensors if name.endswith(".lora_A")]
    linears = [path for path in adapted if path not in stacked]
    if not linears:
        return []
    if spec.target_modules == ALL_LINEAR and not spec.exclude_modules:
        return list(dict.fromkeys(linear.rpartition(".")[2] for linear in linears))
    by_layer: dict[str, list[str]] = {}
    for linear in linears:
        _, layer, inside = linear.split(".", 2)
        by_layer.setdefault(layer, []).append(inside)
    first, *others = by_layer.values()
    alike = _names_every_layer(spec) and all(one == first for one in others)
    return first if alike else linears


def _names_every_layer(spec: AdapterSpec) -> bool:
    """Whether what it says is no word of single layers; the tensors do not tell of those that have
    none. A pattern may be anything."""
    named = () if spec.target_modules == ALL_LINEAR else spec.target_modules
    names = [named, spec.exclude_modules]
    if any(isinstance(one, str) for one in names):
        return False
    return not any(part.isdigit() for one in names for name in one for part in name.split("."))
