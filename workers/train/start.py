"""Training that begins with an adapter's weights, not anew."""

from pathlib import Path

from workers.adapter import files
from workers.adapter.manifest import BaseRecord
from workers.adapter.rescale import rescaled
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError, validated
from workers.config.train import TrainSpec
from workers.injection.adapter import Adapter


def start_from(spec: TrainSpec, adapter: Adapter, base: BaseRecord) -> None:
    """Take over the weights of the adapter that a run begins with, if it does; that must be of this
    base and shape. Another scale is made up for: it computes what it did."""
    if not spec.start_from:
        return
    start = files.read(spec.start_from)
    check_shape(start, spec)
    before = start.manifest.base if start.manifest else None
    if before and before.digest and before.digest != base.digest:
        raise InputError(f"{spec.start_from}: belongs to another base model, {before.path}")
    adapter.load_state_dict(rescaled(start.tensors, start.spec, spec.adapter))


def check_shape(start: files.AdapterFiles, spec: TrainSpec) -> None:
    """InputError where a run's adapter has not the shape of the one that it begins with."""
    for field in _shape(spec.adapter):
        theirs, ours = getattr(start.spec, field), getattr(spec.adapter, field)
        if theirs != ours:
            raise InputError(
                f"{spec.start_from}: cannot be trained on as adapter.{field} {ours}: "
                f"it has {theirs}"
            )


def trained_as(folder: Path) -> AdapterSpec:
    """How the adapter in a folder was trained; of one from elsewhere, what its files say of it."""
    start = files.read(folder)
    spec = start.manifest.spec if start.manifest else None
    return validated(AdapterSpec, spec["adapter"], str(folder)) if spec else start.spec


def _shape(spec: AdapterSpec) -> list[str]:
    """Fields that an adapter's weights were trained for; the others are for training alone."""
    fields = ["num_experts", "rank", "use_dora", "train_also", "train_tokens"]
    if not spec.is_routed:  # One expert is plain LoRA, however it is called: its files do not say.
        return fields
    fields += ["experts", "shared_a", "routing", "gate_form", "gate_scale", "router_temperature"]
    return [*fields, *spec.strategy.inference_fields]
