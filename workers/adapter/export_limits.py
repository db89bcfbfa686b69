"""An adapter in the words of the reference implementation, which knows fewer than we do."""

import math
from typing import Any

from workers.adapter.config import AdapterConfig
from workers.adapter.raw import RawAdapter
from workers.adapter.rescale import by_alpha, rescaled
from workers.adapter.stacking import to_canonical
from workers.adapter.tensor_names import Tensors, target_names, to_disk
from workers.adapter.written import config_values
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError

# What decides a trained adapter's outputs. Jitter, dropout and the like only matter in training.
_COMPUTED = ("num_experts", "gate_form", "gate_scale", "use_dora")


def as_mixlora(raw: RawAdapter, where: str) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors that MoE-PEFT reads and computes the same with.

    What can be folded into the tensors is: the temperature of the router's logits, an A that
    experts share, a fractional alpha, a scale that differs by linear. InputError names the first
    thing that cannot.
    """
    tensors, spec, _ = to_canonical(raw.tensors, raw.config, where)
    if not spec.strategy.disk_names:
        raise InputError(
            f"{where}: cannot be written as mixlora: MoE-PEFT knows no routing {spec.routing}"
        )
    if own := spec.own_weights:
        raise InputError(
            f"{where}: cannot be written as mixlora: MoE-PEFT knows no {own} "
            f"({', '.join(map(str, getattr(spec, own)))})"
        )
    tensors, spec = _fold(tensors, spec)
    base = raw.config.base_model_name_or_path or ""
    values = config_values(spec, target_names(tensors, spec), base)
    values.pop("moetune", None)
    if raw.config.act_fn:
        values["act_fn"] = raw.config.act_fn
    theirs = AdapterConfig.model_validate(values).spec(spec.target_modules, spec.rank, where)
    for field in (*_COMPUTED, *spec.strategy.inference_fields):
        ours, known = getattr(spec, field), getattr(theirs, field)
        if ours != known and not (isinstance(ours, float) and math.isclose(ours, known)):
            raise InputError(
                f"{where}: cannot be written as mixlora: with routing {spec.routing}, MoE-PEFT "
                f"knows {field} {known} only, not {ours}"
            )
    return values, to_disk(tensors, spec, "layers")


def _fold(tensors: Tensors, spec: AdapterSpec) -> tuple[Tensors, AdapterSpec]:
    """The same function with neither temperature, shared A nor a scale but alpha's, whole."""
    new = spec.model_copy(update={"router_temperature": 1.0, "shared_a": False})
    if spec.goat_lr_ratio is not None or not spec.alpha.is_integer():
        new = by_alpha(new)
    folded = rescaled(tensors, spec, new)
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        if name.endswith("router.weight"):
            folded[name] = tensor / spec.router_temperature
        elif leaf == "lora_A":
            folded[name] = tensor.expand(len(tensors[f"{place}.lora_B"]), -1, -1)
    return folded, new
