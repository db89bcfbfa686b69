"""What the bodies of OpenAI's completions protocol are made of."""

import json
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.openai.body import Body, without_nulls
from orchestrator.openai.neutral import Empty, NoItems, Off, unsupported
from orchestrator.openai.tools import MOST, ToolCall, rules_of_training
from workers.data.chat import OF_ROLE, REASONING, Turn, turn_of
from workers.engine.request import RoutingDetail

PARTS = 4096
"""Messages of a chat, and parts of a message, at most: each is checked by itself."""
ONLY_SOME = ("name", "tool_call_id", "tool_calls", *REASONING)
"""Fields of the messages of some roles only."""


def _joined(value: Any, info: ValidationInfo) -> Any:
    """The text of a message that comes in parts, as long as all of them are text."""
    if value is None:
        if info.data.get("tool_calls"):
            return ""
        raise PydanticCustomError("missing", "Field required")
    if not isinstance(value, list):
        return value
    if len(value) > PARTS:
        raise ValueError(f"at most {PARTS} parts are supported")
    parts = [without_nulls(part) for part in value]
    if not parts or not all(isinstance(p, dict) and p.keys() == {"type", "text"} for p in parts):
        raise ValueError("only text parts are supported")
    if not all(p["type"] == "text" and isinstance(p["text"], str) for p in parts):
        raise ValueError("only text parts are supported")
    return "".join(part["text"] for part in parts)


class StreamOptions(Body):
    """`stream_options` of a request."""

    include_usage: bool = False
    include_obfuscation: Off = False


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a chat: also one that was answered here or elsewhere, and comes back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: str = ""
    tool_call_id: str = ""
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST, fail_fast=True)] = Field([])
    reasoning_content: str = ""
    reasoning: str = ""
    thinking: str = ""
    refusal: Empty = ""
    annotations: NoItems = Field([])
    content: Annotated[
        str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart] | None)
    ] = Field(None, validate_default=True)

    @field_validator(*ONLY_SOME)
    @classmethod
    def _of_its_role(cls, value: Any, info: ValidationInfo) -> Any:
        role = info.data.get("role", "")
        if value and info.field_name not in OF_ROLE.get(role, ()):
            raise unsupported()
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.turn
        return self

    @cached_property
    def turn(self) -> Turn:
        """As chat templates are given it, in training too; ValueError where it cannot be."""
        said = self.model_dump(include={"role", "content", *ONLY_SOME}, exclude_defaults=True)
        with rules_of_training():
            return turn_of({"content": self.content} | said, "")


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
