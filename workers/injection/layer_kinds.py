"""Which decoder layers are alike, so that what holds of one is asked of one only."""

from collections.abc import Sequence

from torch import nn

from workers.config.adapter import AdapterSpec, is_named
from workers.injection.targets import layer_weight_sizes


def layer_kinds(layers: Sequence[nn.Module], spec: AdapterSpec) -> list[int]:
    """For every decoder layer the index of the first that is like it: of the same modules and
    sizes, and with the same of them named by the specification. Needs no weights."""
    first: dict[object, int] = {}
    return [first.setdefault(_kind(layer, at, spec), at) for at, layer in enumerate(layers)]


def _kind(layer: nn.Module, at: int, spec: AdapterSpec) -> object:
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    sizes = tuple((name, tuple(weight.shape)) for name, weight in layer.named_parameters())
    fields = (spec.target_modules, spec.exclude_modules, spec.target_parameters)
    paths = layer_weight_sizes(layer, f"layers.{at}")
    return modules, sizes, tuple(is_named(path, field) for field in fields for path in paths)
