"""OpenAI's completions protocol: what we answer, whole or streamed."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from orchestrator.openai.answers import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatPiece,
    Completion,
    Extended,
    TextChoice,
    TokenCounts,
)
from orchestrator.openai.openai_logprobs import Told, chat_logprobs, text_logprobs
from workers.engine.request import Chunk, Finish, TokenText
from workers.engine.routing.types import RequestRouting

Answer = Completion | ChatCompletion
StreamEvent = Completion | ChatCompletionChunk


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

    prefix = "cmpl"

    def __init__(self, model: str, fingerprint: str, tells_routing: bool = False) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model, self._fingerprint = model, fingerprint
        self._tells_routing = tells_routing

    def whole(self, choices: Sequence[ReplyChoice], usage: TokenCounts) -> Answer:
        """The answer in one body."""
        shown = [_text(choice) for choice in choices]
        return {**self._text(shown), "usage": usage, **self._extras(choices[0])}

    def opening(self, _: int, /) -> list[StreamEvent]:
        """What a choice's stream begins with."""
        return []

    def piece(self, choice: ReplyChoice) -> StreamEvent:
        """One event of a stream."""
        return {**self._text([_text(choice)]), **self._extras(choice)}

    def usage(self, usage: TokenCounts) -> StreamEvent:
        """The last event of a stream that includes usage."""
        return {**self._text([]), "usage": usage}

    def _text(self, choices: list[TextChoice]) -> Completion:
        return {
            "id": self.id,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "object": "text_completion",
            "choices": choices,
        }

    def _extras(self, choice: ReplyChoice) -> Extended:
        if not self._tells_routing or choice.routing is None:
            return {}
        return {"moetune": {"routing": asdict(choice.routing)}}


class ChatReply(Reply):
    """The bodies of a chat's answer."""

    prefix = "chatcmpl"

    def whole(self, choices: Sequence[ReplyChoice], usage: TokenCounts) -> Answer:
        """The answer in one body."""
        return {
            "id": self.id,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "object": "chat.completion",
            "choices": [_chat(choice) for choice in choices],
            "usage": usage,
            **self._extras(choices[0]),
        }

    def opening(self, index: int, /) -> list[StreamEvent]:
        """A choice begins with the role."""
        return [self._chunk([_piece(ReplyChoice(index), {"role": "assistant", "content": ""})])]

    def piece(self, choice: ReplyChoice) -> StreamEvent:
        """One event of a stream."""
        delta: ChatDelta = {"content": choice.text} if choice.text else {}
        return {**self._chunk([_piece(choice, delta)]), **self._extras(choice)}

    def usage(self, usage: TokenCounts) -> StreamEvent:
        """The last event of a stream that includes usage."""
        return {**self._chunk([]), "usage": usage}

    def _chunk(self, choices: list[ChatPiece]) -> ChatCompletionChunk:
        return {
            "id": self.id,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "object": "chat.completion.chunk",
            "choices": choices,
        }


def _text(choice: ReplyChoice) -> TextChoice:
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": text_logprobs(choice.logprobs),
        "finish_reason": choice.finish,
    }


def _chat(choice: ReplyChoice) -> ChatChoice:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": chat_logprobs(choice.logprobs),
        "finish_reason": choice.finish,
    }


def _piece(choice: ReplyChoice, delta: ChatDelta) -> ChatPiece:
    return {
        "index": choice.index,
        "delta": delta,
        "logprobs": chat_logprobs(choice.logprobs),
        "finish_reason": choice.finish,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> TokenCounts:
    """Counts of an answer's tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
