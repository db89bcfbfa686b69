"""The gateway: OpenAI's HTTP interface as a FastAPI application over any backend that generates."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from orchestrator.catalogue import Catalogue
from orchestrator.openai_answer import events, whole
from orchestrator.openai_reply import (
    ChatReply,
    Reply,
    as_request_error,
    error_body,
    internal_error,
)
from orchestrator.openai_schema import ChatBody, CompletionBase, CompletionBody, parse
from workers.engine.request import Adapter, Chunk, RequestError, TextRequest
from workers.spec import InputError

MAX_BODY_BYTES = 2**20


class Backend(Protocol):
    """What generates: `workers.engine.text.TextEngine`, or a Serve handle to replicas of it."""

    def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """The answer, piece by piece; closing it takes the request back."""
        ...

    async def load(self, adapter: Adapter) -> None:
        """Hold an adapter ready everywhere."""
        ...

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        ...


def key_hash(key: str) -> str:
    """What the gateway keeps of its key."""
    return hashlib.sha256(key.encode()).hexdigest()


def create_app(backend: Backend, catalogue: Catalogue, accepted_key: str | None = None) -> FastAPI:
    """The application. `accepted_key` is the `key_hash` of the key that requests must bear."""
    app = FastAPI(
        title="moetune",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_watching(catalogue),
    )
    gateway = Gateway(backend, catalogue, accepted_key)
    guarded = APIRouter(prefix="/v1", dependencies=[Depends(gateway.authorize)])
    guarded.get("/models")(gateway.list_models)
    guarded.get("/models/{model:path}")(gateway.show_model)
    guarded.post("/chat/completions")(gateway.chat)
    guarded.post("/completions")(gateway.complete)
    app.include_router(guarded)
    app.get("/health")(gateway.health)
    app.get("/ready")(gateway.ready)
    app.exception_handler(InputError)(_refused)
    app.exception_handler(HTTPException)(_no_route)
    app.exception_handler(Exception)(_crashed)
    return app


class Gateway:
    """The routes."""

    def __init__(self, backend: Backend, catalogue: Catalogue, accepted_key: str | None) -> None:
        self._backend, self._catalogue, self._accepted = backend, catalogue, accepted_key

    async def authorize(self, request: Request) -> None:
        """Refuse a request without the key, where one is configured."""
        if self._accepted is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key_hash(key.strip() if scheme.lower() == "bearer" else "")
        if not hmac.compare_digest(given, self._accepted):
            raise RequestError(
                "a valid key is required: Authorization: Bearer KEY", None, 401, "invalid_api_key"
            )

    async def health(self) -> dict[str, str]:
        """The gateway runs."""
        return {"status": "ok"}

    async def ready(self) -> JSONResponse:
        """An engine answers; also whether the registry does."""
        ready = self._catalogue.settled and await self._backend.ready()
        status = {"ready": ready, "registry": self._catalogue.readable}
        return JSONResponse(status, 200 if ready else 503)

    async def list_models(self) -> dict[str, Any]:
        """The base and every name that is served."""
        return {"object": "list", "data": [_model(id) for id in self._catalogue.ids]}

    async def show_model(self, model: str) -> dict[str, Any]:
        """One model; NAME@VERSION too."""
        await self._catalogue.find(model)
        return _model(model)

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        return await self._answer(parse(ChatBody, await _read_body(request)), ChatReply)

    async def complete(self, request: Request) -> Response:
        """Continue a text."""
        return await self._answer(parse(CompletionBody, await _read_body(request)), Reply)

    async def _answer(self, body: CompletionBase, kind: type[Reply]) -> Response:
        served = await self._catalogue.find(body.model)
        reply = kind(served.id, served.fingerprint)
        chunks = self._backend.generate(body.request(served.adapter))
        if not body.stream:
            return JSONResponse(await whole(reply, chunks))
        try:
            first = await anext(chunks)  # what is wrong with the request shows here, as a status
        except BaseException:
            await chunks.aclose()
            raise
        return StreamingResponse(
            events(reply, first, chunks, body.include_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )


async def _read_body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(f"the body has more than {MAX_BODY_BYTES} bytes", None, 413)
    return body


def _model(id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": 0, "owned_by": "moetune"}


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    refusal = as_request_error(error)
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
    return JSONResponse(error_body(refusal), refusal.status, headers.get(refusal.status))


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = error_body(RequestError(message, None, error.status_code))
    return JSONResponse(body, error.status_code, error.headers)


async def _crashed(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse(error_body(internal_error()), 500)


def _watching(catalogue: Catalogue) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(catalogue.watch())
        yield
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch

    return lifespan
