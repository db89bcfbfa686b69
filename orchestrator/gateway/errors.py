"""Every refusal and failure in OpenAI's error body."""

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from orchestrator.auth.rate_limit import TooMany
from orchestrator.gateway.body import GONE
from orchestrator.openai.errors import error_body, told
from orchestrator.telemetry.request_record import RequestRecord
from workers.config.base import InputError
from workers.engine.request import RequestError


def add_handlers(app: FastAPI) -> None:
    """Nothing leaves the application without that body."""
    app.exception_handler(InputError)(_failed)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_no_route)
    app.exception_handler(ClientDisconnect)(_gone)
    app.exception_handler(Exception)(_failed)


def refusal(request: Request, error: RequestError) -> JSONResponse:
    """The answer that tells this error."""
    return JSONResponse(error_body(error), error.status, _headers(request, error))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return refusal(request, told(error, getattr(request.state, "id", "-")))


async def _gone(request: Request, _: Exception) -> JSONResponse:
    """Before its body had come; or the body went beyond its limit, and that is answered."""
    return refusal(request, GONE)


def _headers(request: Request, error: RequestError) -> dict[str, str] | None:
    if error.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if error.status not in (429, 503):
        return None
    known = error.retry_after if isinstance(error, TooMany) else None
    return {"Retry-After": str(known or request.app.state.retry_after.retry_after)}


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    message = f"{param or first['loc'][0]}: {first['msg']}"
    return JSONResponse(error_body(RequestError(message, param, 400, "invalid_value")), 400)


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = error_body(RequestError(message, None, error.status_code))
    return JSONResponse(body, error.status_code, error.headers)


KEPT = 0.9
"""Weight of what was before, at each new answer."""
LONGEST = 60


class RetryAfter:
    """An observer: the moving average of the seconds that whole answers took."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self, record: RequestRecord) -> None:
        """Take an answer into the average."""
        if record.status == 200 and record.role != "shadow":
            self._seconds = KEPT * self._seconds + (1 - KEPT) * record.seconds

    @property
    def retry_after(self) -> int:
        """Seconds in which those that run now will have ended, most likely."""
        return min(max(1, math.ceil(self._seconds)), LONGEST)
