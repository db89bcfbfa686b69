"""In front of Ray Serve's own proxy: what must not get there.

The proxy reads every body to its end, whoever sends it, and before the gateway asks for it; so
bodies are limited before it (`BodyLimit`), and heads before that (`Connection`).

It also reads some headers as UTF-8 before the gateway sees the request (Ray 2.60: x-request-id,
x-session-id, serve_multiplexed_model_id, x-request-timeout-seconds, x-request-disconnect-disabled),
and answers 500 where one is not. So none gets there that is not, whatever its name.
"""

import asyncio
import json
import os
from http import HTTPStatus
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.environment import MAX_BODY_VARIABLE
from orchestrator.config.limits import LimitsSpec
from orchestrator.gateway.body import BodyLimit
from orchestrator.openai.errors import error_body
from workers.engine.request import RequestError

POLICY_VIOLATION = 1008
"""RFC 6455; before a websocket is accepted the client sees 403."""


class TextHeaders:
    """ASGI middleware: a header that is not UTF-8 is a 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or hand it on."""
        name = _no_text(scope)
        if name is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        else:
            refusal = RequestError(f"the header {name} is not UTF-8", None, 400, "invalid_value")
            await JSONResponse(error_body(refusal), 400)(scope, receive, send)


def in_front() -> list[Middleware]:
    """What stands in front of Serve's proxy, which calls this by its name before it listens; the
    last one is asked first."""
    limit_connections()
    limit = int(os.environ.get(MAX_BODY_VARIABLE) or LimitsSpec().max_body_bytes)
    return [Middleware(TextHeaders), Middleware(BodyLimit, limit, outermost=True)]


def _no_text(scope: Scope) -> str | None:
    """The first header whose value cannot be decoded. Names are ASCII: the server checks that."""
    for name, value in scope.get("headers", ()):
        try:
            value.decode()
        except UnicodeDecodeError:
            return str(name, "ascii")
    return None


MAX_HEAD_BYTES = 2**16
"""Of a request's line and headers together."""
HEAD_SECONDS = 20.0
"""From a connection's beginning, or a head's first byte, to the head's end."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits: 431 for a head that is too large, 408 for one that does not
    end. The same number of bytes may stand between two pieces of a body, and behind its last."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._unused = 0
        """Bytes that have come without a whole head or a piece of a body."""
        self._in_head = True
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Let the parser have it, and count what it had no use for."""
        if self._in_head:
            self._wait_for_head()
        self._unused += len(data)
        super().data_received(data)
        if self._unused > MAX_HEAD_BYTES:
            self._refuse(431, f"the headers have more than {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head came too large in one piece."""
        if len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > MAX_HEAD_BYTES:
            self._unused = MAX_HEAD_BYTES + 1
            raise ValueError("too large a head")  # the parser stops, and `send_400_response` is due
        self._unused, self._in_head = 0, False
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Use was made of what came."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next head may come."""
        self._unused, self._in_head = 0, True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses, in OpenAI's error body."""
        if self._unused <= MAX_HEAD_BYTES:  # else `data_received` is about to refuse it
            self._refuse(400, msg)

    def _wait_for_head(self) -> None:
        self._late = self._late or self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if self._answering:  # a pipelined request's turn has not come
            self._wait_for_head()
        elif self._unused:
            self._refuse(408, "the headers did not come in time")
        else:
            self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        """Answer so and close; where another answer is on its way, only close."""
        if self.transport.is_closing():
            return
        if not self._answering:
            self.transport.write(_answer(status, message))
        self._stop_waiting()
        self.transport.close()


def limit_connections() -> None:
    """Have uvicorn take `Connection` where it is left to choose, in this process.

    Ray Serve (2.60) starts uvicorn without saying which protocol, and offers no way to say it:
    this entry of uvicorn's own table is what that choice is looked up by.
    """
    HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__name__}"


def _answer(status: int, message: str) -> bytes:
    body = json.dumps(error_body(RequestError(message, None, status))).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        "\r\n",
    )
    return "\r\n".join(head).encode() + body
