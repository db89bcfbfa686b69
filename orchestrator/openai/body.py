"""Base of the bodies that come in, and how their values are taken."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

EXACT = 2**53
"""Up to here a float is the whole number that it says."""


def whole(value: Any) -> Any:
    """16.0 counts as 16: many languages write all numbers so."""
    exact = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if exact else value


def without_nulls(value: Any) -> Any:
    """An object without the keys that are null, which clients send for "not set"."""
    if not isinstance(value, dict):
        return value
    return {name: one for name, one in value.items() if one is not None}


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    if {"type": "null"} in schema.get("anyOf", ()):
        return schema
    outer = {name: schema.pop(name) for name in list(schema) if name in ("title", "default")}
    return {**outer, "anyOf": [schema, {"type": "null"}]}


class Body(BaseModel):
    """Base of all that comes in: no unknown fields, no conversions between types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Also without unknown fields but the first: one is enough to refuse, and each costs."""
        given = without_nulls(values)
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in given if name not in known), None)
        return {n: whole(value) for n, value in given.items() if n in known or n == unknown}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The description says of the nulls too."""
        described = handler.resolve_ref_schema(handler(core))
        optional = described["properties"].keys() - set(described.get("required", ()))
        for name in optional:
            described["properties"][name] = _or_null(described["properties"][name])
        described["additionalProperties"] = {"type": "null"}
        return described
