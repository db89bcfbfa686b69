"""The same low-rank updates under another scale."""

from collections.abc import Mapping

from torch import Tensor

from workers.adapter.tensor_names import Tensors
from workers.config.adapter import AdapterSpec


def rescaled(tensors: Mapping[str, Tensor], old: AdapterSpec, new: AdapterSpec) -> Tensors:
    """An adapter's tensors by canonical name, of which `new` computes what `old` does of
    `tensors`."""
    changed = dict(tensors)
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        if leaf != "lora_B":
            continue
        in_features = tensors[f"{place}.lora_A"].shape[-1]
        if (ratio := old.scale(in_features) / new.scale(in_features)) != 1:
            changed[name] = tensor * ratio
    return changed


def by_alpha(spec: AdapterSpec) -> AdapterSpec:
    """The shape with the scale 1 at every linear, which any format has words for."""
    one = {"alpha": float(spec.rank), "use_rslora": False, "goat_lr_ratio": None}
    return spec.model_copy(update=one)
