"""Where adapters may attach: the decoder's layers, their linears and feed-forward blocks.

Everything is found by structure; a layer that has a Site already is read as if it had none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from workers.config.base import InputError
from workers.injection.wrapper import AdaptedModule
from workers.layers.expert_stack import ExpertStack, find_stack
from workers.layers.feed_forward import FeedForward, find_feed_forward, is_linear, linear_sizes


@dataclass(frozen=True)
class TargetModule:
    """A module of a decoder layer, and how to put another one in its stead."""

    path: str
    """Canonical name, such as `layers.0.self_attn.q_proj`."""
    owner: nn.Module
    name: str
    """The owner's attribute that holds it."""

    @property
    def bare(self) -> nn.Module:
        """The original module."""
        return _bare(self.module)

    @property
    def module(self) -> nn.Module:
        """What stands there now: the original, or the Site around it."""
        module = getattr(self.owner, self.name)
        assert isinstance(module, nn.Module)
        return module


def decoder_layers(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The model's decoder layers, the list of modules that holds most of its parameters, and its
    path in the model, such as `model.layers`."""
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)
    }
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of decoder layers: {tree(model)}")
    sizes = {path: sum(map(_numbers, layers.parameters())) for path, layers in lists.items()}
    path = max(sizes, key=sizes.__getitem__)
    return path, list(lists[path])


def places(owner: nn.Module, path: str) -> Iterator[TargetModule]:
    """Every module below `owner`, outermost first."""
    for name, _ in owner.named_children():
        place = TargetModule(f"{path}.{name}", owner, name)
        yield place
        yield from places(place.bare, place.path)


def linears(layer: nn.Module, path: str) -> list[TargetModule]:
    """Every linear of a decoder layer."""
    return [
        place
        for place in places(layer, path)
        if linear_sizes(place.bare)
        and (isinstance(place.module, AdaptedModule) or is_linear(place.bare))
    ]


def stacks(layer: nn.Module, path: str) -> dict[TargetModule, ExpertStack]:
    """Every module of a decoder layer that stacks the experts of the base's own mixture."""
    found = ((place, find_stack(place.bare)) for place in places(layer, path))
    return {place: stack for place, stack in found if stack is not None}


def weight_sizes(layers: list[nn.Module]) -> dict[str, tuple[int, int, int]]:
    """`layer_weight_sizes` of all decoder layers."""
    found: dict[str, tuple[int, int, int]] = {}
    for index, layer in enumerate(layers):
        found |= layer_weight_sizes(layer, f"layers.{index}")
    return found


def layer_weight_sizes(layer: nn.Module, path: str) -> dict[str, tuple[int, int, int]]:
    """(in, out, matrices) of every weight that plain LoRA may adapt, by canonical path: of linears,
    which are one matrix each, and of stacked experts. Needs no weights."""
    found: dict[str, tuple[int, int, int]] = {}
    for place in linears(layer, path):
        found[place.path] = *(linear_sizes(place.bare) or (0, 0)), 1
    for place, stack in stacks(layer, path).items():
        for name in stack.names:
            found[f"{place.path}.{name}"] = *stack.sizes(name), stack.experts
    return found


def feed_forwards(layer: nn.Module, path: str) -> dict[TargetModule, FeedForward]:
    """Every feed-forward block of a decoder layer; none is an InputError.

    Adapters that are there already must be switched off.
    """
    found = {}
    for place in places(layer, path):
        module = place.module
        view = module.feed_forward if isinstance(module, AdaptedModule) else None
        if view is None:  # else it was proved before, and a server's requests wait for us
            children = {name: _bare(child) for name, child in place.bare.named_children()}
            view = find_feed_forward(place.bare, children)
        if view is not None:
            found[place] = view
    if not found:
        raise InputError(f"{path} has no feed-forward block that block experts fit{_why(layer)}")
    return found


def _why(layer: nn.Module) -> str:
    """The rest of the refusal: what stands there instead, and what is supported on it."""
    stacks = (f"{name} {list(w.shape)}" for name, w in layer.named_parameters() if w.dim() == 3)
    if stack := next(stacks, None):
        return (
            f": it is a mixture of experts already, stacked as {stack}; supported on it are "
            "experts: linear, and num_experts: 1, on its attention and other linears, and with "
            "num_experts: 1 LoRA on its own experts, by target_parameters"
        )
    return (
        " (a module of its own that holds gate, up and down; gate_up and down; or two linears; "
        f"each with an activation): {tree(layer)}; experts: linear needs none"
    )


def tree(module: nn.Module) -> str:
    """The module tree in one line, linears with their sizes."""
    sizes = linear_sizes(module)
    if sizes:
        return f"{type(module).__name__} {sizes[0]}x{sizes[1]}"
    children = (f"{name}: {tree(_bare(child))}" for name, child in module.named_children())
    inside = ", ".join(children)
    return f"{type(module).__name__}({inside})" if inside else type(module).__name__


def _numbers(weight: nn.Parameter) -> int:
    """How many there are; ZeRO-3's weights are empty while they are not used."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def _bare(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, AdaptedModule) else module
