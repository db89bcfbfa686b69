"""Training that begins with an adapter's weights, not anew."""

from pathlib import Path

from workers.adapter import files
from workers.adapter.manifest import BaseRecord
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.adapter import Adapter


def start_from(folder: Path, adapter: Adapter, spec: AdapterSpec, base: BaseRecord) -> None:
    """Take over the weights of the adapter in a folder; it must be of this base and shape."""
    start = files.read(folder)
    for field in _shape(spec):
        theirs, ours = getattr(start.spec, field), getattr(spec, field)
        if theirs != ours:
            raise InputError(
                f"{folder}: cannot be trained on as adapter.{field} {ours}: it has {theirs}"
            )
    before = start.manifest.base if start.manifest else None
    if before and before.digest and before.digest != base.digest:
        raise InputError(f"{folder}: belongs to another base model, {before.path}")
    adapter.load_state_dict(start.tensors)


def _shape(spec: AdapterSpec) -> list[str]:
    """Fields that an adapter's weights were trained for; the others are for training alone."""
    fields = ["num_experts", "rank", "scale", "use_dora"]
    if not spec.is_routed:  # One expert is plain LoRA, however it is called: its files do not say.
        return fields
    fields += ["experts", "shared_a", "routing", "gate_form", "gate_scale", "router_temperature"]
    return [*fields, *spec.strategy.inference_fields]
