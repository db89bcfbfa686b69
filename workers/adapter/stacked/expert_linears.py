"""PEFT's files of before transformers 5, whose mixtures had a linear for each matrix of an expert:
read as what they are today, updates of stacked weights (`target_parameters`).

Gate and up lie in one weight now. Each has an A of its own: these lie below one another, and their
B on a diagonal, with the sum of the ranks.
E experts, R rank, I and O the input and output size of a linear, N the linears of a weight.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from workers.adapter.config import AdapterConfig
from workers.adapter.stacked.names import MATRICES, to_wrappers
from workers.adapter.targets import INDEX
from workers.config.adapter import is_named
from workers.config.base import InputError

_PEFT = "base_model.model."
_BLOCK = rf"{re.escape(_PEFT)}(?P<layer>[A-Za-z_.]+\.{INDEX})\.(?:block_sparse_moe|mlp)"
_OF_EXPERT = re.compile(
    rf"(?P<path>{_BLOCK}\.experts\.(?P<expert>{INDEX})"
    r"\.(?P<name>w[123]|(?:gate|up|down)_proj))\.(?P<leaf>lora_[AB])\.weight"
)
_OF_ROUTER = re.compile(rf"{_BLOCK}\.gate\.lora_[AB]\.weight")
WEIGHTS = {
    "gate_up_proj": (("w1", "gate_proj"), ("w3", "up_proj")),
    "down_proj": (("w2", "down_proj"),),
}
"""Of a stacked weight the linears that lie in it, in their order, as Mixtral and as others name
them."""

_Linear = dict[int, dict[str, torch.Tensor]]
"""Of each expert its A and B."""


def as_stacked(
    config: AdapterConfig,
    values: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    where: str,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration's values and the tensors of a file, as PEFT has them today; as they are
    where there are none of experts that were linears."""
    found: dict[tuple[str, str, int], _Linear] = defaultdict(lambda: defaultdict(dict))
    rest = {}
    for name, tensor in tensors.items():
        match = _OF_EXPERT.fullmatch(name)
        if match is None:
            rest[name] = tensor
            continue
        weight, place = _place(match["name"])
        scale = config.scale(match["path"].removeprefix(_PEFT), routed=False)
        whole = tensor.float() * (scale if match["leaf"] == MATRICES[1] else 1)
        found[match["layer"], weight, place][int(match["expert"])][match["leaf"]] = whole
    if not found:
        return dict(values), dict(tensors)
    if config.use_dora:
        raise InputError(f"{where}: use_dora is true, which experts of a base cannot have")
    if any(map(_OF_ROUTER.fullmatch, rest)):
        raise InputError(f"{where}: adapts the router of a base's experts, which is not supported")
    stacked: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for layer, weight in dict.fromkeys(key[:2] for key in found):
        path = f"{layer}.mlp.experts.{weight}"
        linears = [found.get((layer, weight, place)) for place in range(len(WEIGHTS[weight]))]
        lora_A, lora_B = _joined(linears, f"{where}: {path}")
        ranks[path] = lora_A.shape[1]
        divisor = config.lora_alpha / ranks[path] ** (0.5 if config.use_rslora else 1)
        stacked |= {f"{_PEFT}{path}.lora_A": lora_A, f"{_PEFT}{path}.lora_B": lora_B / divisor}
    wrapped = to_wrappers(stacked, [_PEFT + path for path in ranks])
    return {**values, **_named(config, rest, ranks)}, rest | wrapped


def _place(name: str) -> tuple[str, int]:
    """The stacked weight that a linear lies in today, and where."""
    pairs = (
        (weight, at, names) for weight, all_ in WEIGHTS.items() for at, names in enumerate(all_)
    )
    return next((weight, at) for weight, at, names in pairs if name in names)


def _joined(linears: list[_Linear | None], where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A [E, N R, I] and B [E, N O, N R] of a stacked weight; of a linear without an update, B has
    zeros."""
    stacks = [None if linear is None else _stack(linear, where) for linear in linears]
    there = [stack for stack in stacks if stack is not None]
    if len({(*lora_A.shape[::2], lora_B.shape[1]) for lora_A, lora_B in there}) != 1:
        raise InputError(f"{where}: its experts' linears are of several sizes")
    experts, out = len(there[0][1]), there[0][1].shape[1]
    lora_A = torch.cat([lora_A for lora_A, _ in there], 1)
    lora_B = lora_A.new_zeros(experts, out * len(stacks), lora_A.shape[1])
    rank = 0
    for place, stack in enumerate(stacks):
        if stack is not None:
            own = stack[1].shape[2]
            lora_B[:, place * out : (place + 1) * out, rank : rank + own] = stack[1]
            rank += own
    return lora_A, lora_B


def _stack(linear: _Linear, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, R, I] and [E, O, R] of a linear of all experts."""
    if set(linear) != set(range(len(linear))) or any(len(one) != 2 for one in linear.values()):
        raise InputError(f"{where}: not every expert has an A and a B")
    A, B = ([linear[expert][leaf] for expert in range(len(linear))] for leaf in MATRICES)
    shapes = {(one.shape, other.shape) for one, other in zip(A, B, strict=True)}
    if len(shapes) != 1 or A[0].ndim != 2 or B[0].ndim != 2 or len(A[0]) != B[0].shape[1]:
        raise InputError(f"{where}: its experts' matrices are of several sizes")
    return torch.stack(A), torch.stack(B)


def _named(
    config: AdapterConfig, rest: Mapping[str, torch.Tensor], ranks: Mapping[str, int]
) -> dict[str, Any]:
    """The keys that name what is adapted, and say its rank; scales lie in B."""
    linears = list(dict.fromkeys(name.removeprefix(_PEFT).partition(".lora_")[0] for name in rest))
    used = [one for one in config.targets or () if any(is_named(at, (one,)) for at in linears)]
    short = dict.fromkeys(path.partition("mlp.")[1] + path.partition("mlp.")[2] for path in ranks)
    return {
        "target_modules": used if config.targets is not None else linears,
        "target_parameters": list(short if config.every_layer else ranks),
        "rank_pattern": {**ranks, **config.rank_pattern},
        "alpha_pattern": {**dict.fromkeys(ranks, config.lora_alpha), **config.alpha_pattern},
    }
