"""What the bodies of OpenAI's completions protocol are made of."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from workers.engine.request import RoutingDetail

PARTS = 4096
"""Messages of a chat, and parts of a message, at most: each is checked by itself."""


def _joined(value: Any) -> Any:
    """The text of a message that comes in parts, as long as all of them are text."""
    if not isinstance(value, list):
        return value
    if len(value) > PARTS:
        raise ValueError(f"at most {PARTS} parts are supported")
    if not value or not all(isinstance(p, dict) and p.keys() == {"type", "text"} for p in value):
        raise ValueError("only text parts are supported")
    if not all(p["type"] == "text" and isinstance(p["text"], str) for p in value):
        raise ValueError("only text parts are supported")
    return "".join(part["text"] for part in value)


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
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in given if name not in known), None)
        return {name: value for name, value in given.items() if name in known or name == unknown}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The description says of the nulls too."""
        described = handler.resolve_ref_schema(handler(core))
        optional = described["properties"].keys() - set(described.get("required", ()))
        for name in optional:
            described["properties"][name] = _or_null(described["properties"][name])
        return described


class StreamOptions(Body):
    """`stream_options` of a request."""

    include_usage: bool = False


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart])]

    def plain(self) -> dict[str, str]:
        """As chat templates know it; `developer` is OpenAI's new name for `system`."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


class JsonSchema(Body):
    """`response_format.json_schema` of a request."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool = True
    """An answer always obeys its schema."""


class ResponseFormat(Body):
    """`response_format` of a request."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type: json_schema, which needs it")
        return self

    @property
    def text(self) -> str | None:
        """The schema as JSON; None without one."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_)
        return '{"type": "object"}' if self.type == "json_object" else None


class Extras(Body):
    """`moetune` of a request: what OpenAI's protocol has no word for."""

    routing: RoutingDetail
