"""OpenAI's completions protocol: what we answer, whole or streamed, and how an error looks."""

import secrets
import time
from typing import Any

from workers.engine.request import Finish, RequestError
from workers.spec import InputError

ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(error: RequestError) -> dict[str, Any]:
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


def as_request_error(error: InputError) -> RequestError:
    """Any bad input as an answer; what says nothing else is a 400."""
    return error if isinstance(error, RequestError) else RequestError(str(error))


def internal_error() -> RequestError:
    """What a client learns of an error of ours."""
    return RequestError("internal error; the server's log has more", None, 500, "internal_error")


class Reply:
    """The bodies of one answer. `model` is the exact version that gives it."""

    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, fingerprint: str) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, text: str, finish: Finish, usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one body."""
        return self._body(self.whole_object, [self._choice(text, finish)], usage=usage)

    def opening(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return []

    def piece(self, text: str, finish: Finish | None = None) -> dict[str, Any]:
        """One event of a stream."""
        return self._body(self.piece_object, [self._delta(text, finish)])

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last event of a stream that includes usage."""
        return self._body(self.piece_object, [], usage=usage)

    def _choice(self, text: str, finish: Finish | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    _delta = _choice

    def _body(self, kind: str, choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, **rest}


class ChatReply(Reply):
    """The bodies of a chat's answer."""

    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        """A stream begins with the role."""
        return [self._body(self.piece_object, [_chat_delta({"role": "assistant", "content": ""})])]

    def _choice(self, text: str, finish: Finish | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}

    def _delta(self, text: str, finish: Finish | None) -> dict[str, Any]:
        return _chat_delta({"content": text} if text else {}, finish)


def _chat_delta(delta: dict[str, str], finish: Finish | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Counts of an answer's tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
