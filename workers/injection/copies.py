"""Which weights of a base an adapter trains itself: of its embedding, and of its output head."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from workers.config.base import InputError
from workers.injection.sharded import is_sharded
from workers.injection.targets import TargetModule
from workers.layers.trained_weight import TrainedWeight

Copies = Mapping[TargetModule, TrainedWeight]


def plan_copies(model: nn.Module, names: Sequence[str]) -> Copies:
    """A copy of each weight that is named, and where it goes; of weights that the base ties, one
    for both. InputError for what is neither its embedding nor its head. Needs no weights."""
    if not names:
        return {}
    places = _places(model)
    if unknown := [name for name in names if name not in places]:
        raise InputError(
            f"train_also: {unknown[0]} is neither the base's embedding nor its output head: these "
            f"are {' and '.join(places)}"
        )
    if is_sharded(model):
        raise InputError("train_also: the base is in shards, of which no copy can be trained")
    tied = len(places) > 1 and _is_tied(model)
    if tied and len(set(names)) < len(places):
        raise InputError(
            f"train_also: the base ties {' and '.join(places)}, so that they are one weight; name "
            "both"
        )
    copies: dict[TargetModule, TrainedWeight] = {}
    for name, place in places.items():
        if name in names:
            _check_plain(name, place.bare)
            known = next(iter(copies.values()), None) if tied else None
            copies[place] = known or TrainedWeight(place.bare)
    return copies


def _places(model: nn.Module) -> dict[str, TargetModule]:
    """The embedding's and the head's, by the last word of their paths."""
    found = {}
    for get in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, get, lambda: None)()
        path = next((path for path, one in model.named_modules() if one is module), None)
        if path:
            owner, _, name = path.rpartition(".")
            found[name] = TargetModule(path, model.get_submodule(owner), name)
    return found


def _is_tied(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    return bool(getattr(text, "tie_word_embeddings", False))


def _check_plain(name: str, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise InputError(f"train_also: {name} is no plain matrix of 16 bits or more")
    if getattr(module, "bias", None) is not None:
        raise InputError(f"train_also: {name} has a bias, which would stay as it is")


def untied(tensors: Mapping[str, Tensor], copies: Copies) -> dict[str, Tensor]:
    """Tensors by canonical name, without the second of what the base ties. InputError where the
    two are not the same."""
    names = [f"{place.name}.weight" for place in copies]
    if len(names) < 2 or len(set(copies.values())) > 1 or not all(n in tensors for n in names):
        return dict(tensors)
    first, second = (tensors[name] for name in names)
    if not torch.equal(first, second):
        raise InputError(f"train_also: {names[0]} and {names[1]} differ, but the base ties them")
    return {name: tensor for name, tensor in tensors.items() if name != names[1]}
