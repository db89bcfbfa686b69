"""OpenAI's completions protocol: what we answer, whole or streamed, and how an error looks."""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.openai.openai_logprobs import Told, chat_logprobs, text_logprobs
from workers.engine.request import Chunk, Finish, RequestError, TokenText
from workers.engine.routing.types import RequestRouting

log = logging.getLogger(__name__)
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


@dataclass
class ReplyChoice:
    """One answer, as far as it has come."""

    index: int
    text: str = ""
    finish: Finish | None = None
    logprobs: tuple[TokenText, ...] = ()
    routing: RequestRouting | None = None
    told: Told = field(default_factory=Told)

    def add(self, chunk: Chunk) -> None:
        """Append a piece of it."""
        self.text += chunk.text
        self.logprobs += self.told.by(chunk)
        self.finish, self.routing = chunk.finish, chunk.routing


class Reply:
    """The bodies of one answer. `model` is the exact version that gives it; `tells_routing` is
    whether the request asks for that."""

    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, fingerprint: str, tells_routing: bool = False) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._tells_routing = tells_routing
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[ReplyChoice], usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one body."""
        shown = [self._choice(choice) for choice in choices]
        return self._body(self.whole_object, shown, usage=usage, **self._extras(choices[0]))

    def opening(self, _: int, /) -> list[dict[str, Any]]:
        """What a choice's stream begins with."""
        return []

    def piece(self, choice: ReplyChoice) -> dict[str, Any]:
        """One event of a stream."""
        return self._body(self.piece_object, [self._delta(choice)], **self._extras(choice))

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last event of a stream that includes usage."""
        return self._body(self.piece_object, [], usage=usage)

    def _choice(self, choice: ReplyChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": text_logprobs(choice.logprobs),
            "finish_reason": choice.finish,
        }

    _delta = _choice

    def _extras(self, choice: ReplyChoice) -> dict[str, Any]:
        if not self._tells_routing or choice.routing is None:
            return {}
        return {"moetune": {"routing": asdict(choice.routing)}}

    def _body(self, kind: str, choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, **rest}


class ChatReply(Reply):
    """The bodies of a chat's answer."""

    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int, /) -> list[dict[str, Any]]:
        """A choice begins with the role."""
        role = {"role": "assistant", "content": ""}
        return [self._body(self.piece_object, [_chat(ReplyChoice(index), {"delta": role})])]

    def _choice(self, choice: ReplyChoice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return _chat(choice, {"message": message})

    def _delta(self, choice: ReplyChoice) -> dict[str, Any]:
        return _chat(choice, {"delta": {"content": choice.text} if choice.text else {}})


def _chat(choice: ReplyChoice, shown: dict[str, Any]) -> dict[str, Any]:
    logprobs = chat_logprobs(choice.logprobs)
    return {"index": choice.index, **shown, "logprobs": logprobs, "finish_reason": choice.finish}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Counts of an answer's tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
