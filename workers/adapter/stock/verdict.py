"""Whether an adapter can be written as an ordinary checkpoint, without reading its weights.

A checkpoint of merged weights computes exactly what the adapter does, or it is not written. No
torch: whoever lists versions asks this too.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workers.adapter.stock.families import TWINS, Twin
from workers.config.adapter import AdapterSpec
from workers.config.model import ModelSpec


def why_not(spec: AdapterSpec, base: Mapping[str, Any]) -> str | None:
    """Why an adapter of this shape on the base of this configuration (its config.json) cannot be a
    checkpoint, and the nearest that can; None where it can."""
    return next(_reasons(spec, base), None)


def base_config(model: ModelSpec) -> dict[str, Any] | None:
    """A base's configuration, of its folder or from the hub's cache; None where neither has one."""
    path: Any = Path(model.path) / "config.json"
    if not Path(model.path).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
        except HFValidationError:  # a path that is no hub name
            return None
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return values if isinstance(values, dict) else None


def experts_and_slots(spec: AdapterSpec) -> tuple[int, int]:
    """How many experts each block of the checkpoint has, and how many of them a token."""
    experts = max(spec.expert_counts)
    return experts, spec.slots(experts)


def _reasons(spec: AdapterSpec, base: Mapping[str, Any]) -> Iterator[str]:
    if base.get("quantization_config"):
        yield (
            "the base's own files are packed (quantization_config), and nothing can be added to "
            "packed weights; give --base the model that they were made from"
        )
    if spec.use_dora:
        yield (
            "use_dora: an export merges low-rank updates, not magnitudes; train without use_dora "
            "(plain LoRA or a mixture)"
        )
    if spec.is_routed:
        yield from _of_routing(spec)
        yield from _of_family(base)


def _of_routing(spec: AdapterSpec) -> Iterator[str]:
    sparse = "a sparse checkpoint"
    if spec.experts == "linear":
        yield (
            f"experts: linear: each linear has a router of its own, and {sparse} has one for each "
            "block; the nearest is experts: block"
        )
    if not spec.strategy.joint:
        yield (
            f"routing: {spec.routing}: {sparse} takes the same number of most probable experts for "
            "each token, renormalised; the nearest is routing: top_k"
        )
    if spec.gate_form != "renormalised":
        yield (
            f"gates: {spec.gate_form}: in {sparse} a token's gates are its experts' probabilities, "
            "divided by their sum; the nearest is gates: renormalised"
        )
    counts = sorted({*spec.expert_counts} - {1})
    if len(counts) > 1:
        yield (
            f"num_experts: {list(spec.expert_counts)}: {sparse} has the same number in every "
            f"layer; the nearest is num_experts: {counts[-1]}"
        )


def _of_family(base: Mapping[str, Any]) -> Iterator[str]:
    family = base.get("model_type")
    twin = TWINS.get(str(family))
    if twin is None:
        yield (
            f"the base is of the family {family}, of which no sparse twin is known; there is one "
            f"for {', '.join(TWINS)}, and plain LoRA (num_experts: 1) merges into any base"
        )
        return
    for field, allowed in twin.asks.items():
        found = base.get(field, allowed[0])
        if found not in allowed:
            yield (
                f"the base has {field}: {found}, and its sparse twin {twin.architecture} knows "
                f"{field}: {allowed[0]} only; plain LoRA (num_experts: 1) merges into any base"
            )


def twin_of(spec: AdapterSpec, base: Mapping[str, Any]) -> Twin | None:
    """The family that the checkpoint will be of; None for plain LoRA, which stays in the base's
    own."""
    return TWINS[base["model_type"]] if spec.is_routed else None
