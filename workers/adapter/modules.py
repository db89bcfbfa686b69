"""Whether PEFT's tensors lie on the modules of this model that their configuration names."""

from torch import nn

from workers.adapter.config import AdapterConfig
from workers.adapter.tensor_names import Tensors
from workers.config.base import InputError
from workers.injection.inject import row_map
from workers.injection.sharded import whole
from workers.injection.targets import decoder_layers, linears, stacks


def check_modules(
    model: nn.Module, tensors: Tensors, layer_list: str, config: AdapterConfig, where: str
) -> None:
    """InputError for tensors (by canonical name) of a module that the model's decoder does not
    have, or that has another path there, as a vision tower's have; and for a linear, or a stacked
    weight, that the configuration names and that lost its tensors. `layer_list` is the path that
    they name."""
    own, linear_paths, stacked = _decoder(model)
    in_layers = (name for name in tensors if name.startswith("layers."))
    canonical = dict.fromkeys(name.rpartition(".")[0] for name in in_layers)
    adapted = [f"{layer_list}{path.removeprefix('layers')}" for path in canonical]
    for path in adapted:
        if path not in linear_paths | stacked:
            inside = sorted({known.removeprefix(own).split(".", 2)[2] for known in linear_paths})
            weights = sorted({known.removeprefix(own).split(".", 2)[2] for known in stacked})
            beside = f" and the stacked weights {', '.join(weights)}" if weights else ""
            raise InputError(
                f"{where}: does not fit this model: it adapts {path}, but the decoder's layers are "
                f"{own}, with the linears {', '.join(inside)}{beside}"
            )
    named = {path for path in linear_paths if config.adapts(path)}
    named |= {path for path in stacked if config.adapts_parameter(path)}
    for path in sorted(named - set(adapted)):
        raise InputError(
            f"{where}: does not fit this model: its configuration names {path}, but it has no "
            "tensors for it"
        )


def _decoder(model: nn.Module) -> tuple[str, set[str], set[str]]:
    """The path of the list of decoder layers; those of its linears; those of stacked weights."""
    own, layers = decoder_layers(model)
    found, stacked = set(), set()
    with row_map(model).everywhere(None):
        for index, layer in enumerate(layers):
            path = f"{own}.{index}"
            with whole(layer):
                found |= {place.path for place in linears(layer, path)}
            for place, stack in stacks(layer, path).items():
                stacked |= {f"{place.path}.{name}" for name in stack.names}
    return own, found, stacked
