"""Specifications as JSON Schema, which editors and generated documentation read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from workers.config.base import Spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Pydantic's, without titles that repeat field names, and without whole sections as defaults:
    each field of a section has its own."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if isinstance(made.get("default"), dict):
            del made["default"]
        return made


@dataclass(frozen=True)
class Field:
    """A field of a specification, or one of its sections."""

    path: str
    """Dotted, as `--set` takes it."""
    schema: Schema
    required: bool
    section: Schema | None
    """The schema of the mapping that the field holds, or may hold."""


def json_schema(spec: type[Spec]) -> Schema:
    """What a file may say for this specification; descriptions are the fields' docstrings."""
    made: Schema = _joined(spec.model_json_schema(schema_generator=_Generator))
    return {"$schema": DIALECT, **made}


def fields(schema: Schema, defs: Mapping[str, Schema] | None = None) -> Iterator[Field]:
    """All fields of a `json_schema`, each section before what is in it."""
    known = schema.get("$defs", {}) if defs is None else defs
    for name, inner in schema.get("properties", {}).items():
        section = _section(inner, known)
        yield Field(name, inner, name in schema.get("required", ()), section)
        for field in fields(section, known) if section else ():
            yield Field(f"{name}.{field.path}", field.schema, field.required, field.section)


def resolved(schema: Schema, defs: Mapping[str, Schema]) -> Schema:
    """The definition that a schema refers to, or the schema itself."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return defs[name] if name else schema


def _section(schema: Schema, defs: Mapping[str, Schema]) -> Schema | None:
    """The mapping with known fields among what a schema allows."""
    for one in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found = resolved(one, defs)
        if "properties" in found:
            return found
    return None


def _joined(value: Any) -> Any:
    """Descriptions in one line: a docstring's line ends mean nothing."""
    if isinstance(value, list):
        return [_joined(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: " ".join(one.split())
        if key == "description" and isinstance(one, str)
        else _joined(one)
        for key, one in value.items()
    }
