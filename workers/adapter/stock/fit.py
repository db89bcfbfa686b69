"""Whether an adapter's tensors lie on a base's linears, all that it names and no others.

`workers.injection.inject` would find the same, but asks for the base's weights.
"""

from torch import nn

from workers.adapter.files import AdapterFiles
from workers.config.base import InputError
from workers.injection.targets import linears
from workers.layers.feed_forward import linear_sizes


def adapted_places(layers: list[nn.Module], files: AdapterFiles, where: str) -> list[str]:
    """Places of the linears that the adapter has tensors for, as in `0.mlp.up_proj`; InputError
    unless they are those of this model that its configuration names, and of their shapes."""
    mine = {
        name.removesuffix(".lora_A").removeprefix("layers.")
        for name in files.tensors
        if name.endswith(".lora_A")
    }
    found = {
        place.path.removeprefix("layers."): linear_sizes(place.bare)
        for index, layer in enumerate(layers)
        for place in linears(layer, f"layers.{index}")
    }
    named = {path for path in found if files.spec.adapts(f"layers.{path}")}
    for path in sorted(mine ^ named):
        state = "has no tensors for" if path in named else "adapts a linear that is not there,"
        raise InputError(f"{where}: does not fit this base: it {state} layers.{path}")
    for path in sorted(mine):
        inner, outer = found[path] or (0, 0)
        experts = _experts_at(path, len(layers), files)
        lora_A, lora_B = (files.tensors[f"layers.{path}.{one}"] for one in ("lora_A", "lora_B"))
        theirs = (lora_A.shape[2], lora_B.shape[1], len(lora_B))
        if theirs != (inner, outer, experts):
            raise InputError(
                f"{where}: does not fit this base: layers.{path} has {inner} to {outer} features "
                f"and {experts} experts there, not {theirs[0]} to {theirs[1]} and {theirs[2]}"
            )
    return sorted(mine)


def _experts_at(path: str, layers: int, files: AdapterFiles) -> int:
    index, inside = path.split(".", 1)
    in_block = files.spec.is_routed and inside.startswith("mlp.")
    return files.spec.experts_in(int(index), layers) if in_block else 1
