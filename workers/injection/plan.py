"""What an adapter's specification puts where in a model: nothing is attached here."""

import re
from collections.abc import Mapping

from torch import nn

from workers.config.adapter import ALL_LINEAR, AdapterSpec, is_named
from workers.config.base import InputError
from workers.config.routing import UNROUTED
from workers.injection.adapted_stack import is_as_read
from workers.injection.mixed_batch import Layer
from workers.injection.sharded import whole
from workers.injection.targets import TargetModule, feed_forwards, linears, stacks, tree
from workers.injection.wrapper import AdaptedModule
from workers.layers.expert_stack import ExpertStack
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward
from workers.layers.stack_lora import StackLora

View = FeedForward | ExpertStack | None
"""How a module was read; None of a linear."""
Plan = dict[TargetModule, tuple[View, Layer]]


def plan(layers: Mapping[int, nn.Module], spec: AdapterSpec, count: int) -> Plan:
    """The new layers and where they go. `layers` are all of the model's, which has `count`, or one
    of each kind of them (workers.injection.layer_kinds)."""
    made: Plan = {}
    seen: list[str] = []
    stacked: list[str] = []
    for index, layer in layers.items():
        path, own = f"layers.{index}", spec.in_layer(index, count)
        with whole(layer):  # What a block is, it shows by running; DoRA starts from its weights.
            found = {place.path: place for place in linears(layer, path)}
            seen += found
            made |= _plan_layer(layer, path, own, found)
            if spec.target_parameters:
                known = _known_stacks(layer, path)
                stacked += _weights(known)
                made |= _plan_stacks(known, own)
    if not seen:
        raise InputError(
            "the decoder's layers have no linear that an adapter fits (a torch.nn.Linear, or a "
            f"Conv1D of transformers): {tree(next(iter(layers.values())))}"
        )
    _check(made, seen, spec)
    _check_stacked(stacked, list(layers.values()), spec)
    return made


def alone(layer: nn.Module, at: int, spec: AdapterSpec) -> AdapterSpec | None:
    """What a specification puts on decoder layer `at`, as one of a model that has this layer only;
    None where it is nothing. `spec` is the layer's own."""
    path = f"layers.{at}"
    with whole(layer):
        found = {place.path: place for place in linears(layer, path)}
        named = [one for one in found if spec.adapts(one)]
        weights = _weights(_known_stacks(layer, path)) if spec.target_parameters else []
        stacked = [one for one in weights if spec.adapts_parameter(one)]
        made = _plan_layer(layer, path, spec, found)
    if not made and not stacked:
        return None
    blocks = any(isinstance(one, BlockExperts) for _, one in made.values())
    changes = {
        "target_modules": _pattern(named, at),
        "exclude_modules": (),
        "target_parameters": _pattern(stacked, at),
        "train_also": (),  # of no layer
        "train_tokens": (),
        "train_tokens_of": (),
        **(UNROUTED if spec.experts == "block" and not blocks else {}),
    }
    return spec.model_copy(update=changes)


def _pattern(paths: list[str], at: int) -> str | tuple[str, ...]:
    """What matches these paths of layer `at` in a model where it is the first."""
    inside = [re.escape(path.removeprefix(f"layers.{at}.")) for path in paths]
    return rf"layers\.0\.({'|'.join(inside)})" if inside else ()


def _known_stacks(layer: nn.Module, path: str) -> dict[TargetModule, ExpertStack]:
    """Stacked experts that compute as they were read; what was shown once is not asked again."""
    found = stacks(layer, path).items()
    return {
        place: stack
        for place, stack in found
        if isinstance(place.module, AdaptedModule) or is_as_read(stack)
    }


def _plan_stacks(known: dict[TargetModule, ExpertStack], spec: AdapterSpec) -> Plan:
    """Those of one decoder layer's stacked experts."""
    made: Plan = {}
    for place, stack in known.items():
        names = [name for name in stack.names if spec.adapts_parameter(f"{place.path}.{name}")]
        if names:
            made[place] = stack, StackLora(stack, spec, names)
    return made


def _weights(known: dict[TargetModule, ExpertStack]) -> list[str]:
    return [f"{place.path}.{name}" for place, stack in known.items() for name in stack.names]


def _plan_layer(
    layer: nn.Module, path: str, spec: AdapterSpec, found: dict[str, TargetModule]
) -> Plan:
    """Those of one decoder layer, whose linears are `found`."""
    made: Plan = {}
    if spec.experts == "block" and spec.is_routed:
        for place, view in feed_forwards(layer, path).items():
            names = [name for name in view.linears if spec.adapts(f"{place.path}.{name}")]
            if names:
                _check_outer(place.path, view, names, spec)
                made[place] = view, BlockExperts(view, spec, names)
            for name in view.linears:
                del found[f"{place.path}.{name}"]
    plain = spec if spec.experts == "linear" else spec.model_copy(update={"num_experts": 1})
    for place in found.values():
        if spec.adapts(place.path):
            made[place] = None, LinearExperts(place.bare, plain)
    return made


def _check_outer(path: str, view: FeedForward, names: list[str], spec: AdapterSpec) -> None:
    outer = view.outer[0]
    if spec.use_dora and outer in names:
        raise InputError(
            f"use_dora: block experts run {path}.{outer} once for the sum of their outputs, so it "
            f"has no magnitude for each; name target_modules without it, such as {list(view.inner)}"
        )


def _check(made: Plan, seen: list[str], spec: AdapterSpec) -> None:
    known = sorted({path.split(".", 2)[2] for path in seen})
    for field in ("target_modules", "exclude_modules"):
        named = getattr(spec, field)
        if named != ALL_LINEAR and (lost := _nowhere(named, seen)) is not None:
            said = f"{lost} matches no linear's path, such as {seen[0]}"
            said = said if isinstance(named, str) else f"no linear is called {lost}"
            raise InputError(f"{field}: {said}; there are {known}")
    if not made and not spec.target_parameters:
        raise InputError("exclude_modules: leaves out every linear that target_modules name")
    fits_any_linear = spec.experts == "linear" or not spec.is_routed
    blocks = [layer for _, layer in made.values() if isinstance(layer, BlockExperts)]
    if not fits_any_linear and not blocks:
        raise InputError(
            "target_modules: block experts need a linear of the feed-forward block among them; "
            f"there are {known}"
        )


def _check_stacked(stacked: list[str], layers: list[nn.Module], spec: AdapterSpec) -> None:
    if spec.target_parameters and not stacked:
        raise InputError(
            "target_parameters: the decoder's layers have no stacked experts that LoRA fits "
            "(gate_up_proj and down_proj, or up_proj and down_proj, in 16 bits or more): "
            f"{tree(layers[-1])}"
        )
    known = sorted({path.split(".", 2)[2] for path in stacked})
    named = spec.target_parameters
    if (lost := _nowhere(named, stacked)) is not None:
        said = (
            "matches the path of no stacked weight"
            if isinstance(named, str)
            else "is no stacked weight"
        )
        raise InputError(f"target_parameters: {lost} {said}; there are {known}")


def _nowhere(names: str | tuple[str, ...], seen: list[str]) -> str | None:
    """The first pattern or name of a specification that is of none of these paths."""
    each: list[str | tuple[str]] = [names] if isinstance(names, str) else [(one,) for one in names]
    lost = (one for one in each if not any(is_named(path, one) for path in seen))
    first = next(lost, None)
    return first[0] if isinstance(first, tuple) else first
