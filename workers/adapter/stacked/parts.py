"""Updates of a base's stacked experts, read from PEFT's tensors.

E experts, R rank, I and O the input and output size of a weight.
"""

from collections import defaultdict
from typing import NamedTuple

import torch

from workers.adapter.config import AdapterConfig
from workers.adapter.stacked.names import MATRICES, WRAPPED
from workers.adapter.tensor_names import Parts, TensorPlace
from workers.config.adapter import is_named
from workers.config.base import InputError
from workers.layers.expert_stack import STACKED


class StackedPair(NamedTuple):
    """The update of one stacked weight."""

    lora_A: torch.Tensor
    """[E, R, I]"""
    lora_B: torch.Tensor
    """[E, O, R]"""

    @property
    def rank(self) -> int:
        """As it is stored."""
        return int(self.lora_A.shape[1])

    @property
    def bytes(self) -> int:
        """In float32."""
        return 4 * (self.lora_A.numel() + self.lora_B.numel())


def take_stacked(parts: Parts, config: AdapterConfig, where: str) -> dict[TensorPlace, StackedPair]:
    """The stacked weights' updates, taken out of `parts`: what stays are linears'."""
    wrappers: dict[TensorPlace, list[TensorPlace]] = defaultdict(list)
    for place in parts.places if config.target_parameters else ():
        path = place.path
        while path.endswith(WRAPPED):
            path = path.removesuffix(WRAPPED)
        wrappers[TensorPlace(place.layer, path)].append(place)
    taken = {}
    for module, found in wrappers.items():
        if len(found) == 1 and not _is_wrapper(parts, module, found[0], config):
            continue
        names = _names(parts, module, config)
        depths = sorted(found, key=lambda place: len(place.path), reverse=True)
        wanted = [module.path + depth * WRAPPED for depth in reversed(range(len(names)))]
        if [place.path for place in depths] != wanted:
            raise InputError(
                f"{where}: target_parameters name {len(names)} weights of {parts.path(module)}, "
                f"but it has tensors for {len(found)} of them"
            )
        for name, wrapper in zip(names, depths, strict=True):
            place = TensorPlace(module.layer, f"{module.path}.{name}")
            rank = config.rank(parts.path(place), routed=False)
            taken[place] = _pair(parts, wrapper, rank, f"{where}: {place}")
    return taken


def _is_wrapper(
    parts: Parts, module: TensorPlace, found: TensorPlace, config: AdapterConfig
) -> bool:
    """Whether these tensors are of a stacked weight: of a linear there is one A of its rank."""
    if found.path != module.path:
        return True
    lora_A = parts.stack(found, MATRICES[0]).get(None)
    of_linear = lora_A is None or len(lora_A) == config.rank(parts.path(found), routed=False)
    return not of_linear and bool(_names(parts, module, config))


def _names(parts: Parts, module: TensorPlace, config: AdapterConfig) -> list[str]:
    """The module's weights that the configuration names, in the order of their wrappers."""
    named = config.target_parameters or ()
    return [name for name in STACKED if is_named(f"{parts.path(module)}.{name}", named)]


def _pair(parts: Parts, wrapper: TensorPlace, rank: int, where: str) -> StackedPair:
    matrices = []
    for leaf in MATRICES:
        found = parts.stacks.pop((wrapper, leaf), {})
        if set(found) != {None}:
            raise InputError(f"{where}.{leaf}: is missing")
        matrices.append(found[None])
    lora_A, lora_B = matrices
    shapes = f"shapes {list(lora_A.shape)} and {list(lora_B.shape)} of A and B"
    if lora_A.ndim != 2 or lora_B.ndim != 2 or len(lora_A) % rank:
        raise InputError(f"{where}: {shapes} do not fit rank {rank}")
    experts = len(lora_A) // rank
    if lora_B.shape[1] != experts * rank or experts < 2:
        raise InputError(f"{where}: {shapes} are not of as many experts, with rank {rank}")
    lora_B_ORE = lora_B.float().view(len(lora_B), rank, experts)
    return StackedPair(
        lora_A.float().view(experts, rank, -1), lora_B_ORE.permute(2, 0, 1).contiguous()
    )
