"""FastAPI writes the OpenAPI document. Here is what it cannot see of our routes: bodies that are
read by hand, the events of streams, and refusals."""

import json
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import TypeAdapter

from orchestrator.openai.answers import ChatCompletion, ChatCompletionChunk, Completion, ErrorBody
from orchestrator.openai.schema import ChatBody, CompletionBody

UNSEEN = (ChatBody, CompletionBody, ChatCompletionChunk, ErrorBody)
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
_REFS = "#/components/schemas/{model}"


def refusals() -> dict[int | str, dict[str, Any]]:
    """`responses` of every route that takes a key."""
    return {status: _refusal(status, meaning) for status, meaning in REFUSALS.items()}


def chats() -> dict[str, Any]:
    """What the route of chats says of itself."""
    return {"response_model": ChatCompletion, **_takes("ChatBody", "ChatCompletionChunk")}


def completions() -> dict[str, Any]:
    """What the route of completions says of itself."""
    return {"response_model": Completion, **_takes("CompletionBody", "Completion")}


class Description:
    """The document as it is sent. It needs no key and much computing: it is made once."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def answer(self) -> Response:
        """Of all routes that the application had when it was first asked for."""
        return Response(self._content, media_type="application/json")

    @cached_property
    def _content(self) -> bytes:
        return json.dumps(describe(self._app)).encode()


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of all routes that `app` has now."""
    document = app.openapi()
    schemas = document["components"]["schemas"]
    _, made = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter[Any](kind)) for kind in UNSEEN], ref_template=_REFS
    )
    schemas.update(made["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):  # ours is the 400
        schemas.pop(unused, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    return document


def _takes(body: str, event: str) -> dict[str, Any]:
    data = {
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REFS.format(model=event)},
    }
    stream = {
        "type": "object",
        "description": "Of each event: a piece of the answer in JSON, and [DONE] at the end.",
        "properties": {"data": {"type": "string", **data}},
        "required": ["data"],
    }
    return {
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": _REFS.format(model=body)}}},
            }
        },
        "responses": {
            200: {
                "description": "The answer.",
                "content": {"text/event-stream": {"schema": stream}},
            }
        },
    }


def _refusal(status: int, meaning: str) -> dict[str, Any]:
    # By name, and not as `model`: FastAPI would read the type anew for each refusal of each route.
    content = {"application/json": {"schema": {"$ref": _REFS.format(model="ErrorBody")}}}
    refusal: dict[str, Any] = {"description": meaning, "content": content}
    if status in (429, 503):
        refusal["headers"] = {"Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}}
    return refusal
