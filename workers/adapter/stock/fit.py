"""Whether an adapter's tensors lie on a base's linears and stacked experts: all that it names.

`workers.injection.inject` would find the same, but asks for the base's weights.
"""

from torch import nn

from workers.adapter.files import AdapterFiles
from workers.config.base import InputError
from workers.injection.targets import weight_sizes


def adapted_places(layers: list[nn.Module], files: AdapterFiles, where: str) -> list[str]:
    """Places of the linears and stacked weights that the adapter has tensors for, as in
    `0.mlp.up_proj`; InputError unless they are those of this model that its configuration names,
    and of their shapes."""
    mine = {
        name.removesuffix(".lora_A").removeprefix("layers.")
        for name in files.tensors
        if name.endswith(".lora_A")
    }
    found = {path.removeprefix("layers."): size for path, size in weight_sizes(layers).items()}
    named = {path for path in found if _adapts(files, path, stacked=found[path][2] > 1)}
    for path in sorted(mine ^ named):
        state = "has no tensors for" if path in named else "adapts a linear that is not there,"
        raise InputError(f"{where}: does not fit this base: it {state} layers.{path}")
    for path in sorted(mine):
        inner, outer, matrices = found[path]
        experts = matrices if matrices > 1 else _experts_at(path, len(layers), files)
        lora_A, lora_B = (files.tensors[f"layers.{path}.{one}"] for one in ("lora_A", "lora_B"))
        theirs = (lora_A.shape[2], lora_B.shape[1], len(lora_B))
        if theirs != (inner, outer, experts):
            raise InputError(
                f"{where}: does not fit this base: layers.{path} has {inner} to {outer} features "
                f"and {experts} experts there, not {theirs[0]} to {theirs[1]} and {theirs[2]}"
            )
    return sorted(mine)


def _adapts(files: AdapterFiles, path: str, *, stacked: bool) -> bool:
    adapts = files.spec.adapts_parameter if stacked else files.spec.adapts
    return adapts(f"layers.{path}")


def _experts_at(path: str, layers: int, files: AdapterFiles) -> int:
    index, inside = path.split(".", 1)
    in_block = files.spec.is_routed and inside.startswith("mlp.")
    return files.spec.experts_in(int(index), layers) if in_block else 1
