"""The JSON Schema of a search space: which fields may vary, and how each entry may be written."""

from collections.abc import Iterator
from typing import Any

from search_spaces.parameters import NUM_EXPERTS, may_vary, slot_paths
from workers.config.json_schema import DIALECT, Field, Schema, fields, json_schema
from workers.config.train import TrainSpec

SPACE, _CONDITIONS = "SearchSpace", "Conditions"
_WHEN = {"$ref": f"#/$defs/{_CONDITIONS}"}
_NUMBER = {"type": "number"}
_EXAMPLE = {
    "adapter.num_experts": {"choice": [1, 2, 4, 8]},
    "adapter.top_k": {"int": [1, 4], "below": "adapter.num_experts"},
    "optimizer.lr": {"log": [1e-4, 3e-3]},
    "loss.z_loss_weight": {"float": [0, 0.01], "when": {"adapter.num_experts": {"above": 2}}},
    "adapter.alpha": 16,
}


def space_schema() -> Schema:
    """Of a file with a search space."""
    defs = space_definitions()
    return {"$schema": DIALECT, "title": "moetune search space", **defs.pop(SPACE), "$defs": defs}


def space_definitions() -> dict[str, Schema]:
    """What `#/$defs` needs where a space stands inside another document."""
    known = json_schema(TrainSpec)
    every = [one for one in fields(known) if "$ref" not in one.schema]
    varied = [one for one in every if may_vary(one.path)]
    space = {
        "description": "Fields of train, each with the range that trials take it from.",
        "type": "object",
        "properties": {one.path: _entry(one) for one in varied},
        "additionalProperties": False,
        "minProperties": 1,
        "examples": [_EXAMPLE],
    }
    values = {one.path: _value(one) for one in varied}
    return {SPACE: space, _CONDITIONS: _conditions([one.path for one in every]), **values}


def _value(field: Field) -> Schema:
    return {key: value for key, value in field.schema.items() if key not in _SAID_OF_FIELD}


_SAID_OF_FIELD = ("default", "description")


def _entry(field: Field) -> Schema:
    value = {"$ref": f"#/$defs/{field.path}"}
    said = {key: field.schema[key] for key in _SAID_OF_FIELD if key in field.schema}
    return {**said, "anyOf": [value, *_ranges(field, value)]}


def _ranges(field: Field, value: Schema) -> Iterator[Schema]:
    beside = {"below": {"const": NUM_EXPERTS}} if field.path in slot_paths() else {}
    yield _range("choice", {"type": "array", "items": value, "minItems": 1}, beside)
    types = {one.get("type") for one in (field.schema, *field.schema.get("anyOf", ()))}
    if "integer" in types:
        step = {"type": "integer", "exclusiveMinimum": 0}
        yield _range("int", _ends(value, "integer"), {"step": step, **beside})
    if "number" in types:
        yield _range("float", _ends(value, "number"), beside)
        yield _range("log", _ends({**_NUMBER, "exclusiveMinimum": 0}, "number"), beside)


def _ends(value: Schema, kind: str) -> Schema:
    """LOW and HIGH."""
    end = {"allOf": [value, {"type": kind}]}
    return {"type": "array", "items": end, "minItems": 2, "maxItems": 2}


def _range(kind: str, ends: Schema, beside: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {kind: ends, "when": _WHEN, **beside},
        "required": [kind],
        "additionalProperties": False,
    }


def _conditions(paths: list[str]) -> Schema:
    tests: dict[str, Any] = {"above": _NUMBER, "below": _NUMBER, "in": {"type": "array"}}
    test = {
        "type": "object",
        "properties": tests,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    plain = {"type": ["boolean", "integer", "number", "string", "array", "null"]}
    return {
        "description": "Asked for only where these fields of the trial are so.",
        "type": "object",
        "propertyNames": {"enum": paths},
        "additionalProperties": {"anyOf": [plain, test]},
    }
