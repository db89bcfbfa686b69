"""A request's body: how large it may be, how long it may take to come, and what it asks.

Starlette's own limit answers in plain text, lets a request with too large a Content-Length be
worked on first, and waits for ever for a body that does not end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.openai.errors import error_body
from orchestrator.openai.neutral import UNSUPPORTED
from orchestrator.openai.prompt import TAGS
from orchestrator.openai.schema import CompletionBase
from workers.engine.request import RequestError
from workers.engine.turns import Turns

BODY_SECONDS = 60.0
"""From a request's head to the end of its body."""
DISCONNECTED: Message = {"type": "http.disconnect"}


class BodyLimit:
    """ASGI middleware: 413 for a body that is too large, at once where its Content-Length says so;
    408 for one that does not end. In front of whatever reads bodies without a limit."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS, outermost: bool = False
    ) -> None:
        """`outermost`: it stands behind the server itself, and so knows what of a body has not
        come; a connection that still carries some is closed after the answer."""
        self._app, self._max, self._seconds = app, max_bytes, seconds
        self._outermost = outermost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or hand it on with its body counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, send, self._max, self._seconds)
        if _declared(scope) > self._max:
            await body.refuse(_too_large(self._max))
        elif self._outermost:
            await self._app(scope, body.receive, body.send_closing)
        else:
            await self._app(scope, body.receive, body.send)


class _Body:
    """One request's body on its way to the application.

    After a refusal the application hears that the client is gone, and is heard no more.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, max_bytes: int, seconds: float
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max = self._left = max_bytes
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._ended = not _has_body(scope)
        self._answering = self._refused = False

    async def receive(self) -> Message:
        """The next piece of it."""
        if self._refused:
            return DISCONNECTED
        try:
            message = await self._next()
        except TimeoutError:
            return await self.refuse(
                RequestError("the body did not come in time", None, 408, "timeout")
            )
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
        return await self.refuse(_too_large(self._max)) if self._left < 0 else message

    async def send(self, message: Message) -> None:
        """A piece of the answer."""
        self._answering = True
        if not self._refused:
            await self._send(message)

    async def send_closing(self, message: Message) -> None:
        """The same; what is answered before its body has come ends the connection."""
        if message["type"] == "http.response.start" and not self._ended:
            MutableHeaders(scope=message)["connection"] = "close"
        await self.send(message)

    async def refuse(self, error: RequestError) -> Message:
        """Answer so, unless an answer has begun; returns what the application hears."""
        self._refused = True
        if not self._answering:
            close = {"Connection": "close"}
            answer = JSONResponse(error_body(error), error.status, close)
            await answer(self._scope, self._receive, self._send)
        return DISCONNECTED

    async def _next(self) -> Message:
        if self._ended:  # what comes now is the client's leaving
            return await self._receive()
        async with asyncio.timeout_at(self._deadline):
            return await self._receive()


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(f"the body has more than {max_bytes} bytes", None, 413)


def _declared(scope: Scope) -> int:
    """The Content-Length; 0 where there is none, or it is no number: servers refuse that."""
    length = Headers(scope=scope).get("content-length", "")[:20]
    return int(length) if length.isascii() and length.isdigit() else 0


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


GONE = RequestError("the client went away", None, 499, "client_closed_request")
"""What nobody reads; the status that nginx has for it."""
T = TypeVar("T")


@asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """What is in here must be done at `deadline` of the loop's clock; RequestError 504 if not."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise RequestError("this took too long", None, 504, "timeout") from None


async def read_body(request: Request) -> bytes:
    """The body, which must say that it is JSON: what a foreign page can make a browser send
    without asking us first does not. `BodyLimit` has seen to its length."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("send Content-Type: application/json", None, 415)
    return await request.body()


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled when the client goes away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GONE
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


LARGE = 2**16
"""Bytes of a body that one other request may wait for."""
REST = 4
"""Times as long as a large body took to read, its tenant's next one waits."""
BodyT = TypeVar("BodyT", bound=CompletionBase)


async def parsed(body: type[BodyT], raw: bytes, turns: Turns, tenant: str) -> BodyT:
    """`parse`, where it may take long beside the event loop and in this tenant's turn. It lets no
    other thread run for most of its time, so the tenant rests for a multiple of it."""
    if len(raw) <= LARGE:
        return parse(body, raw)
    async with turns.of(tenant):
        begun = time.perf_counter()
        try:
            return await asyncio.to_thread(parse, body, raw)
        finally:
            turns.rest(tenant, REST * min(time.perf_counter() - begun, 1))


def parse(body: type[BodyT], raw: bytes) -> BodyT:
    """Read a request's body; RequestError names the first field that is wrong."""
    try:
        return body.model_validate_json(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in TAGS]
    param = ".".join(path) or None
    message = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            raise RequestError(f"{param} is not supported", param, code="unsupported_parameter")
        case kind if kind == UNSUPPORTED:
            raise RequestError(f"{param}: {message}", param, code=UNSUPPORTED)
        case "missing":
            raise RequestError(f"{param} is missing", param, code="missing_required_parameter")
        case "json_invalid":
            raise RequestError(f"the body is no JSON: {message}", code="invalid_json")
    where = f"{param}: " if param else ""
    raise RequestError(f"{where}{message}", param, code="invalid_value")
