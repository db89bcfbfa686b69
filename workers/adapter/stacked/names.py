"""Updates of a base's stacked experts (`target_parameters`), as PEFT's files call them.

PEFT wraps the module that holds such weights once for each of them, the first one innermost, so a
name tells how deep its wrapper lies and not whose it is: `experts.base_layer.lora_A.weight` belongs
to gate_up_proj, `experts.lora_A.weight` to down_proj. The experts' A lie below one another,
[E * R, I]; the columns of B take turns, [O, R * E].
E experts, R rank, I and O the input and output size of a weight.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from workers.config.adapter import AdapterSpec
from workers.layers.expert_stack import STACKED

WRAPPED = ".base_layer"
MATRICES = ("lora_A", "lora_B")


def stacked_paths(tensors: Mapping[str, torch.Tensor], spec: AdapterSpec) -> list[str]:
    """Canonical paths of the stacked weights that an adapter has tensors for: of its linears each
    has one expert, since such an adapter has no router."""
    if not spec.target_parameters:
        return []
    found = (name.rpartition(".") for name, tensor in tensors.items() if len(tensor) > 1)
    return [path for path, _, leaf in found if leaf == MATRICES[0]]


def parameter_names(tensors: Mapping[str, torch.Tensor], spec: AdapterSpec) -> list[str]:
    """What PEFT's configuration calls them, which knows no patterns: by the names that the
    specification has, or by whole canonical paths."""
    named = spec.target_parameters
    if isinstance(named, str) or names_layers(named):
        return stacked_paths(tensors, spec)
    return list(named)


def names_layers(names: Sequence[str]) -> bool:
    """Whether any of the names is one of a single layer."""
    return any(part.isdigit() for name in names for part in name.split("."))


def to_wrappers(tensors: Mapping[str, torch.Tensor], paths: list[str]) -> dict[str, torch.Tensor]:
    """PEFT's tensors of these stacked weights, under canonical names of its modules."""
    written: dict[str, torch.Tensor] = {}
    by_module: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        module, _, name = path.rpartition(".")
        by_module[module].append(name)
    for module, names in by_module.items():
        for depth, name in enumerate(sorted(names, key=STACKED.index, reverse=True)):
            wrapper = module + depth * WRAPPED
            lora_A, lora_B = (tensors[f"{module}.{name}.{leaf}"] for leaf in MATRICES)
            written[f"{wrapper}.lora_A.weight"] = lora_A.flatten(0, 1)
            written[f"{wrapper}.lora_B.weight"] = lora_B.permute(1, 2, 0).flatten(1)
    return written
