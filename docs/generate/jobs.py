"""The page about job files, out of the specifications: each field with its docstring."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.generate.markdown import anchor, table
from orchestrator.config.job import JobSpec
from workers.config.json_schema import Field, Schema, fields, json_schema

_INTRO = Path(__file__).with_name("jobs_intro.md")
_OWN_SECTION = "The sections of a job file"


def page() -> str:
    """The whole page."""
    schema = json_schema(JobSpec)
    every = [*fields(schema)]
    parts = [_INTRO.read_text(), _section(_OWN_SECTION, "", schema, every)]
    for one in every:
        if one.section:
            parts.append(_section(one.path, one.path, one.section, every))
    return "\n".join(parts)


def _section(title: str, path: str, schema: Schema, every: list[Field]) -> str:
    said = f"{schema['description']}\n\n" if path else ""
    rows = [_row(one) for one in every if one.path.rpartition(".")[0] == path]
    return f"## {title}\n\n{said}{table(('field', 'value', 'default', 'what it is'), rows)}"


def _row(field: Field) -> tuple[str, ...]:
    name = field.path.rpartition(".")[2]
    what = field.schema.get("description") or (field.section or {}).get("description", "")
    shown = f"[{name}](#{anchor(field.path)})" if field.section else f"`{name}`"
    return shown, _allowed(field.schema), _default(field), what


def _default(field: Field) -> str:
    if field.required:
        return "**required**"
    return f"`{_text(field.schema['default'])}`" if "default" in field.schema else ""


def _allowed(schema: Schema, mapping: str = "section") -> str:
    """What a value may be, in words; fields of a `mapping` in a list have no section."""
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_allowed(one, mapping) for one in several) + _form(schema)
    if "$ref" in schema:
        return mapping
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{_text(one)}`" for one in schema.get("enum", [schema.get("const")]))
    if schema["type"] in ("integer", "number"):
        return _NAMES[schema["type"]] + "".join(_bounds(schema))
    if schema["type"] == "array":
        inside = schema.get("items") or schema["prefixItems"][0]
        return f"list of: {_allowed(inside, 'mapping')}"
    return _NAMES[schema["type"]] + _form(schema)


def _form(schema: Schema) -> str:
    """How a text looks."""
    if "examples" in schema:
        return ", as in " + " or ".join(f"`{one}`" for one in schema["examples"])
    return f" like `{schema['pattern']}`" if "pattern" in schema else ""


def _bounds(schema: Schema) -> Iterator[str]:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    if above == 0 and schema["type"] == "integer":
        low, above = 1, None
    said = {" from": low, " above": above}
    said |= {" up to": schema.get("maximum"), ", below": schema.get("exclusiveMaximum")}
    yield from (f"{word} {_text(bound)}" for word, bound in said.items() if bound is not None)


def _text(value: Any) -> str:
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


_NAMES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}
