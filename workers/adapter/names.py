"""Tensor names on disk (MixLoRA, MoELoRA, PEFT): taken apart, and made for what is saved.

On disk every expert has its own matrices: lora_A.weight [R, in], lora_B.weight [out, R]. The
layers hold them stacked: lora_A [E, R, in], lora_B [E, out, R], with E = 1 for plain LoRA, under
`layers.{i}.{path}`, whatever the model calls its list of layers. Routers are [E, D] in both.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workers.adapter.config import PeftType, peft_type
from workers.spec import AdapterSpec, InputError

Tensors = dict[str, torch.Tensor]

INDEX = r"(?:0|[1-9]\d*)"
_ROUTED = (
    rf"\.layers\.(?P<layer>{INDEX})\.(?P<path>[\w.]+?)"
    rf"(?:\.moe_gate|(?:\.experts\.(?P<expert>{INDEX}))?\.lora_(?P<side>[AB]))\.weight"
)
PATTERNS: dict[PeftType, re.Pattern[str]] = {
    "MIXLORA": re.compile("mixlora" + _ROUTED),
    "MOELORA": re.compile("moelora" + _ROUTED),
    "LORA": re.compile(
        rf"base_model\.model\.(?P<list>[A-Za-z_.]+)\.(?P<layer>{INDEX})\.(?P<path>[\w.]+)"
        r"\.lora_(?P<side>[AB])\.weight"
    ),
}


@dataclass(frozen=True)
class Place:
    """One linear of one layer."""

    layer: int
    path: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.path}"

    @property
    def parent(self) -> "Place":
        """The module that holds the linear: a feed-forward block's router lies there."""
        return Place(self.layer, self.path.rpartition(".")[0])


class Parts:
    """The tensors of a file, sorted by place."""

    def __init__(self, raw: Tensors, kind: PeftType, where: str) -> None:
        self.routers: dict[Place, torch.Tensor] = {}
        self.matrices: dict[tuple[Place, str], dict[int | None, torch.Tensor]] = defaultdict(dict)
        lists: set[str] = set()
        for name, tensor in raw.items():
            match = PATTERNS[kind].fullmatch(name)
            if match is None:
                raise InputError(f"{where}: tensor {name} is no part of a {kind} adapter")
            part = match.groupdict()
            lists.add(part.get("list") or "")
            place = Place(int(part["layer"]), part["path"])
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
    def places(self) -> list[Place]:
        """Every adapted linear, in the file's order."""
        return list(dict.fromkeys(place for place, _ in self.matrices))


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
