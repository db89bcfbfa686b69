"""In front of Ray Serve's own proxy: what must not get there.

The proxy reads every body to its end, whoever sends it, and before the gateway asks for it; so
bodies are limited before it (`BodyLimit`), and heads before that (`connection`).

It also reads some headers as UTF-8 before the gateway sees the request (Ray 2.60: x-request-id,
x-session-id, serve_multiplexed_model_id, x-request-timeout-seconds, x-request-disconnect-disabled),
and answers 500 where one is not. So none gets there that is not, whatever its name.
"""

import os

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.environment import MAX_BODY_VARIABLE
from orchestrator.config.limits import LimitsSpec
from orchestrator.gateway.body import BodyLimit
from orchestrator.gateway.connection import limit_connections
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
