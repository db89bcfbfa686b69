"""What a file has of the base's embedding and head: whole copies, or the rows of some tokens.

PEFT knows them by the paths of their modules in the model, the other formats by their names:

    base_model.model.{path}.weight                                  [V, D]   modules_to_save
    base_model.model.{path}.token_adapter.trainable_tokens_delta    [N, D]   trainable_token_indices

PEFT's "delta" are the rows themselves. Shapes: V vocabulary, N tokens, D width.
"""

import re
from collections.abc import Mapping

from workers.adapter.config import AdapterConfig, PeftType
from workers.adapter.tensor_names import Tensors
from workers.config.base import InputError
from workers.layers.trained_rows import TrainedRows

_PEFT = "base_model.model."
_ROWS = "token_adapter.trainable_tokens_delta"


def copies_to_disk(tensors: Tensors, kind: PeftType, paths: Mapping[str, str]) -> Tensors:
    """The named tensors of a file, of those of an adapter by canonical name. `paths` are those in
    the model, by name; of what the base ties, both copies are written, and the rows once."""
    raw: Tensors = {}
    found = {name: tensors[one] for name in paths if (one := f"{name}.weight") in tensors}
    for name, path in paths.items():
        module = f"{_PEFT}{path}" if kind == "LORA" else f"{kind.lower()}.{name}"
        if found:
            raw[f"{module}.weight"] = found.get(name, next(iter(found.values())))
        elif (rows := _rows(name)) in tensors:
            raw[f"{module}.{_ROWS}"] = tensors[rows]
    return raw


def with_rows(tensors: Tensors) -> tuple[str, ...]:
    """Names of the modules of which an adapter has rows, of its tensors by canonical name."""
    end = _rows("")
    return tuple(name.removesuffix(end) for name in tensors if name.endswith(end))


def take_copies(raw: Tensors, config: AdapterConfig, where: str) -> tuple[Tensors, Tensors]:
    """The copies and rows in a file by canonical name, in float32, and all its other tensors."""
    copies, rest = {}, dict(raw)
    for name in config.copied:
        kind = config.peft_type
        start, end = (_PEFT, name) if kind == "LORA" else (f"{kind.lower()}.", name)
        found = [
            one for one in rest if one.startswith(start) and f".{one}".endswith(f".{end}.weight")
        ]
        if len(found) != 1:
            raise InputError(
                f"{where}: modules_to_save names {name}, of which it has {len(found)} tensors"
            )
        copies[f"{name}.weight"] = rest.pop(found[0]).float()
    return copies | _take_rows(rest, config, where), rest


def _take_rows(rest: Tensors, config: AdapterConfig, where: str) -> Tensors:
    """Take the rows out of `rest`. Of a base that ties the two, a file may name both modules and
    have one tensor; of another base the adapter itself then lacks one."""
    tokens = config.tokens(where)
    if not tokens:
        return {}
    start = _PEFT if config.peft_type == "LORA" else f"{config.peft_type.lower()}."
    pattern = re.compile(rf"{re.escape(start)}(?:[\w.]{{1,200}}\.)?(\w+)\.{re.escape(_ROWS)}")
    found = {match[1]: match[0] for match in map(pattern.fullmatch, rest) if match}
    named = config.rows_of or tuple(found)[:1]
    if not found or not found.keys() <= {*named}:
        raise InputError(
            f"{where}: trainable_token_indices names rows of {' and '.join(named) or 'one module'},"
            f" but it has those of {' and '.join(found) or 'none'}"
        )
    rows = {_rows(name): rest.pop(tensor).float() for name, tensor in found.items()}
    for name, tensor in rows.items():
        if tensor.dim() != 2 or len(tensor) != len(tokens):
            raise InputError(
                f"{where}: {name} has shape {list(tensor.shape)}, but trainable_token_indices "
                f"names {len(tokens)} tokens"
            )
    return rows


def _rows(name: str) -> str:
    return f"{name}.{TrainedRows.leaf}"
