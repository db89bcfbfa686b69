"""The layout of m-LoRA, from before it was called MoE-PEFT (August 2024): brought up to date.

It has `mixlora.layers.{i}.gate.weight` and `mixlora.layers.{i}.experts.{e}.{linear}.lora_A.weight`,
puts every plain LoRA under `self_attn`, calls the linears of a feed-forward block w1_proj (gate),
w2_proj (down) and w3_proj (up), and the strategies `mixtral` and `switch`. No torch.
"""

import re
from collections.abc import Mapping
from typing import Any

from workers.adapter.routing_keys import modern_name
from workers.config.base import InputError

LINEARS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

_W = re.compile(r"w[123](?:_proj)?")
_GATE = re.compile(r"(mixlora\.layers\.\d+)\.gate\.weight")
_EXPERT = re.compile(r"(mixlora\.layers\.\d+)\.(experts\.\d+)\.(\w+)\.(lora_[AB]\.weight)")
_PLAIN = re.compile(
    r"((?:mixlora|base_model\.model\.model)\.layers\.\d+)\.self_attn"
    r"\.(w[123]_proj|down_proj|up_proj|gate_up_proj|fc1|fc2)\.(lora_[AB]\.weight)"
)


def modern_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in today's words; one that has them already stays as it is."""
    new = dict(values)
    strategy = modern_name(str(new.get("routing_strategy")))
    old = strategy is not None
    if old:
        new["routing_strategy"] = strategy
    targets = new.get("target_modules")
    if isinstance(targets, list):
        new["target_modules"] = [_linear(target, old) for target in targets]
    elif isinstance(targets, dict):
        new["target_modules"] = {_linear(name, old): on for name, on in targets.items()}
    expert = {"r": new.pop("expert_r", None), "lora_alpha": new.pop("expert_alpha", None)}
    if any(expert.values()):
        new["expert_lora"] = expert
        new.pop("expert_dropout", None)
    return new


def modern_names(names: list[str], where: str) -> dict[str, str]:
    """Today's name of every tensor; two must not become one."""
    new = {name: _modern(name) for name in names}
    if len(set(new.values())) < len(new):
        twice = next(name for name in new.values() if list(new.values()).count(name) > 1)
        raise InputError(f"{where}: has tensor {twice} under an old name too")
    return new


def _modern(name: str) -> str:
    if match := _GATE.fullmatch(name):
        return f"{match[1]}.mlp.moe_gate.weight"
    if match := _EXPERT.fullmatch(name):
        return f"{match[1]}.mlp.{_linear(match[3])}.{match[2]}.{match[4]}"
    if match := _PLAIN.fullmatch(name):
        return f"{match[1]}.mlp.{_linear(match[2])}.{match[3]}"
    return name


def _linear(name: Any, bare: bool = True) -> Any:
    """Today's name of a linear; `bare` takes w1 for w1_proj, which other models have too."""
    known = isinstance(name, str) and _W.fullmatch(name) and (bare or name.endswith("_proj"))
    return LINEARS[name[:2]] if known else name
