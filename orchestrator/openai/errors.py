"""OpenAI's completions protocol: how an error looks, and what of it a client learns."""

import logging

from orchestrator.openai.answers import ErrorBody
from workers.engine.request import RequestError

log = logging.getLogger(__name__)
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(error: RequestError) -> ErrorBody:
    """OpenAI's error object."""
    server = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(error),
            "type": ERROR_TYPES.get(error.status, server),
            "param": error.param,
            "code": error.code,
        }
    }


def told(error: BaseException, id: str) -> RequestError:
    """What the client of a request of this id learns of an error: all of one that is the request's
    (a `RequestError`), and of one of ours that there was one. The log has that whole, under the id:
    it may name folders, databases, and other people's texts."""
    if isinstance(error, RequestError) and error.code != "engine_error":
        return error
    log.error("request %s failed: %s", id, error, exc_info=error)
    return as_failure(error, id)


def as_failure(error: BaseException, id: str) -> RequestError:
    """The same, without a word in the log."""
    if isinstance(error, RequestError) and error.code != "engine_error":
        return error
    code = error.code if isinstance(error, RequestError) else "internal_error"
    return RequestError(f"request {id} failed here; the server's log has more", None, 500, code)
