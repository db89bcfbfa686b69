"""The gateway's description in OpenAPI 3.1: what it takes, what it answers, how it refuses."""

import json
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from pydantic.json_schema import models_json_schema

from orchestrator.openai.schema import ChatBody, CompletionBase, CompletionBody

BODIES: tuple[type[CompletionBase], ...] = (ChatBody, CompletionBody)
OPEN = ("/health", "/ready")
"""Routes without a key."""
_REFS = "#/components/schemas/{model}"
REFUSALS = {
    400: "Something in the request is wrong; `param` names it.",
    401: "No valid key.",
    403: "The key has not the scope.",
    404: "There is no such model, or route.",
    409: "It is not possible now: the gate refuses, or somebody else was first.",
    413: "The body is too large.",
    415: "The body does not say that it is JSON, or comes in an encoding other than gzip.",
    429: "Too many requests, or a quota is used up: again after `Retry-After` seconds.",
    500: "An error of the server; its log has more.",
    503: "Not at the moment: no engine answers, or the gateway closes.",
    504: "It took longer than a request may.",
}


def takes(body: type[CompletionBase], answers: str) -> dict[str, Any]:
    """What a route of completions says of itself: its body, and its answer whole or streamed."""
    schema = {"$ref": _REFS.format(model=body.__name__)}
    event = _object({"data": {"type": "string"}})
    event["description"] = "Of each event: a piece of the answer in JSON, and [DONE] at the end."
    content = {
        "application/json": {"schema": {"$ref": _REFS.format(model=answers)}},
        "text/event-stream": {"schema": event},
    }
    return {
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        },
        "responses": {200: {"description": "The answer.", "content": content}},
    }


class Description:
    """The description as it is sent. It needs no key and much computing: it is made once."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def answer(self) -> Response:
        """Of all routes that the application had when it was first asked for."""
        return Response(self._content, media_type="application/json")

    @cached_property
    def _content(self) -> bytes:
        return json.dumps(describe(self._app)).encode()


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of all routes that `app` has now."""
    document = get_openapi(
        title="moetune",
        version="1",
        description="Chat with a base model and the adapters that were promoted to names.",
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_schemas()}
    components["schemas"].pop("HTTPValidationError", None)
    components["schemas"].pop("ValidationError", None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(operation, path in OPEN)
    return document


def _complete(operation: dict[str, Any], open_: bool) -> None:
    """Refusals and security of one operation; FastAPI's own 422 is our 400."""
    responses = operation["responses"]
    responses.pop("422", None)
    if open_:
        return
    operation["security"] = [{"key": []}]
    for status, meaning in REFUSALS.items():
        responses.setdefault(str(status), _refusal(status, meaning))


def _refusal(status: int, meaning: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REFS.format(model="Error")}}}
    refusal: dict[str, Any] = {"description": meaning, "content": content}
    if status in (429, 503):
        refusal["headers"] = {"Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}}
    return refusal


def _schemas() -> dict[str, Any]:
    _, made = models_json_schema(
        [(body, "validation") for body in BODIES], ref_template=_REFS, title=None
    )
    text = {"type": "string"}
    error = {"message": text, "type": text, "param": _or_null(text), "code": _or_null(text)}
    return {
        **made["$defs"],
        "Error": _object({"error": _object(error)}),
        "ChatCompletion": _completion("chat.completion"),
        "Completion": _completion("text_completion"),
    }


def _completion(kind: str) -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    tokens = ("prompt_tokens", "completion_tokens", "total_tokens")
    text = {"type": "string"}
    return _object(
        {
            "id": text,
            "object": {"const": kind},
            "created": count,
            "model": text,
            "system_fingerprint": text,
            "choices": {"type": "array", "items": {"type": "object"}, "minItems": 1},
            "usage": _object(dict.fromkeys(tokens, count)),
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
