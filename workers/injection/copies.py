"""Which weights of a base an adapter trains itself: of its embedding, and of its output head.

`train_also` trains copies of whole weights, `train_tokens` the rows of some tokens.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.sharded import is_sharded
from workers.injection.targets import TargetModule
from workers.layers.trained_rows import TrainedRows
from workers.layers.trained_weight import TrainedWeight

Copies = Mapping[TargetModule, TrainedWeight | TrainedRows]


def plan_copies(model: nn.Module, spec: AdapterSpec) -> Copies:
    """What stands at the embedding and the head, as far as the adapter trains anything of them; of
    weights that the base ties, one for both. InputError for names that are neither of the two, and
    for tokens that it has no row for. Needs no weights."""
    field = spec.own_weights
    if field is None:
        return {}
    if is_sharded(model):
        raise InputError(f"{field}: the base is in shards, of which no copy can be trained")
    places = _places(model)
    tied = len(places) > 1 and _is_tied(model)
    names = _named(spec, list(places), tied)
    make = _maker(spec)
    copies: dict[TargetModule, TrainedWeight | TrainedRows] = {}
    for name, place in places.items():
        if name in names:
            _check_plain(field, name, place.bare)
            known = next(iter(copies.values()), None) if tied else None
            copies[place] = known or make(place.bare)
    return copies


def _named(spec: AdapterSpec, places: Sequence[str], tied: bool) -> Sequence[str]:
    """The names of the weights, which must be the base's."""
    rows = bool(spec.train_tokens)
    field = "train_tokens_of" if rows else "train_also"
    names = spec.train_tokens_of or places if rows else spec.train_also
    if unknown := [name for name in names if name not in places]:
        raise InputError(
            f"{field}: {unknown[0]} is neither the base's embedding nor its output head: these "
            f"are {' and '.join(places)}"
        )
    if rows and tied and places[0] in names:  # PEFT names the embedding alone, and means both
        return places
    if tied and len(set(names)) < len(places):
        raise InputError(
            f"{field}: the base ties {' and '.join(places)}, so that they are one weight; name both"
        )
    return names


def _maker(spec: AdapterSpec) -> Callable[[nn.Module], TrainedWeight | TrainedRows]:
    if not spec.train_tokens:
        return TrainedWeight
    tokens = [one for one in spec.train_tokens if isinstance(one, int)]
    if len(tokens) < len(spec.train_tokens):
        raise InputError("train_tokens: are texts here, of which only a tokenizer knows the ids")
    return lambda base: TrainedRows(base, tokens)


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


def _check_plain(field: str, name: str, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise InputError(f"{field}: {name} is no plain matrix of 16 bits or more")
    if getattr(module, "bias", None) is not None:
        raise InputError(f"{field}: {name} has a bias, which would stay as it is")
    if field == "train_tokens" and not isinstance(module, nn.Embedding | nn.Linear):
        raise InputError(
            f"{field}: {name} is no plain embedding or linear, but {type(module).__name__}"
        )


def untied(tensors: Mapping[str, Tensor], copies: Copies) -> dict[str, Tensor]:
    """Tensors by canonical name, without the second of what the base ties. InputError where the
    two are not the same."""
    names = [f"{place.name}.{copy.leaf}" for place, copy in copies.items()]
    if len(names) < 2 or len(set(copies.values())) > 1 or not all(n in tensors for n in names):
        return dict(tensors)
    first, second = (tensors[name] for name in names)
    if not torch.equal(first, second):
        raise InputError(f"train_also: {names[0]} and {names[1]} differ, but the base ties them")
    return {name: tensor for name, tensor in tensors.items() if name != names[1]}
