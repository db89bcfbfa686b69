"""What the bodies of OpenAI's completions protocol are made of."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.openai.body import Body, without_nulls
from orchestrator.openai.neutral import Empty, NoItems, Off
from workers.engine.request import RoutingDetail

PARTS = 4096
"""Messages of a chat, and parts of a message, at most: each is checked by itself."""


def _joined(value: Any) -> Any:
    """The text of a message that comes in parts, as long as all of them are text."""
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

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart])]
    name: Empty = ""
    refusal: Empty = ""
    tool_calls: NoItems = Field([])
    annotations: NoItems = Field([])

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
