"""Every refusal and failure in OpenAI's error body."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from orchestrator.edge.meter import TooMany
from orchestrator.openai_reply import as_request_error, error_body, internal_error
from workers.engine.request import RequestError
from workers.spec import InputError


def add_handlers(app: FastAPI) -> None:
    """Nothing leaves the application without that body."""
    app.exception_handler(InputError)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_no_route)
    app.exception_handler(Exception)(_crashed)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    refusal = as_request_error(error)
    return JSONResponse(error_body(refusal), refusal.status, _headers(request, refusal))


def _headers(request: Request, refusal: RequestError) -> dict[str, str] | None:
    if refusal.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if refusal.status not in (429, 503):
        return None
    known = refusal.retry_after if isinstance(refusal, TooMany) else None
    return {"Retry-After": str(known or request.app.state.pace.retry_after)}


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


async def _crashed(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse(error_body(internal_error()), 500)
