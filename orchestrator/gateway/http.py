"""What HTTP asks for and FastAPI leaves to us: bodies that come compressed, HEAD, and streams of
events whose end is noticed."""

import zlib
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.gateway.request_context import RequestContext
from orchestrator.openai.errors import error_body
from workers.engine.request import Chunk, RequestError

GZIP = 31
"""zlib's number for gzip with the largest window."""
PIECE = 2**16
"""Bytes that are made of a body at a time: who counts them stops a small body that grows large."""


class Inflate:
    """ASGI middleware: hands gzip on as what is in it, and refuses other encodings by name (415).
    `BodyLimit` stands behind it, so its limit holds for what is in the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        encoding = _encoding(scope)
        if encoding in ("", "identity"):
            await self._app(scope, receive, send)
        elif encoding in ("gzip", "x-gzip"):
            await self._app(scope, _Gzip(receive).receive, send)
        else:
            said = f"Content-Encoding: {encoding[:40]} is not read; send gzip, or none"
            refusal = RequestError(said, None, 415, "unsupported_encoding")
            await JSONResponse(error_body(refusal), refusal.status)(scope, receive, send)


class _Gzip:
    """A compressed body on its way to the application, which hears RequestError 400 where it is
    none."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._inflating = zlib.decompressobj(GZIP)
        self._compressed = b""
        self._empty = self._more = True
        self._ended = False

    async def receive(self) -> Message:
        """The next piece of what is in it."""
        while not self._ended:
            if piece := self._inflated():
                return _piece(piece, more=True)
            if self._compressed:
                continue
            if not self._more:
                return self._end()
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._compressed = message.get("body", b"")
            self._more = message.get("more_body", False)
            self._empty = self._empty and not self._compressed
        return await self._receive()

    def _inflated(self) -> bytes:
        """Of what has come, as much as is handed on at once. A gzip file may have several parts."""
        try:
            piece = self._inflating.decompress(self._compressed, PIECE)
        except zlib.error:
            raise _broken("is none") from None
        self._compressed = self._inflating.unconsumed_tail
        if self._inflating.eof and self._inflating.unused_data:
            self._compressed = self._inflating.unused_data
            self._inflating = zlib.decompressobj(GZIP)
        return piece

    def _end(self) -> Message:
        if not self._inflating.eof and not self._empty:
            raise _broken("is cut off")
        self._ended = True
        return _piece(b"", more=False)


def _piece(body: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def _broken(how: str) -> RequestError:
    said = f"the body says that it is gzip (Content-Encoding), and {how}"
    return RequestError(said, None, 400, "invalid_value")


def _encoding(scope: Scope) -> str:
    if scope["type"] != "http":
        return ""
    return Headers(scope=scope).get("content-encoding", "").strip().lower()


class Head:
    """ASGI middleware. FastAPI's routes know the methods that they name, and no more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask what GET would be answered, and drop its body."""

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, without_body)
        else:
            await self._app(scope, receive, send)


class EventStream(StreamingResponse):
    """Sends the events of an answer; with it ends the request, and what generates stops."""

    def __init__(
        self, events: AsyncIterator[str], chunks: AsyncGenerator[Chunk], context: RequestContext
    ) -> None:
        """`events` are made from `chunks`; those are closed even where no event was ever taken."""
        super().__init__(
            context.noting(events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._chunks, self._context = chunks, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            with self._context.until_failure():
                await super().__call__(scope, receive, send)
        finally:
            self._context.end()
            await self._chunks.aclose()
