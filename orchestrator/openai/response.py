"""OpenAI's completions protocol: what we answer, whole or streamed, and log-probabilities in its
two shapes: of the tokens that the answer's text is made of."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from orchestrator.openai.answers import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatPiece,
    ChatToken,
    Completion,
    Extended,
    TextChoice,
    TextLogprobs,
    TokenCounts,
    TokenEntry,
)
from workers.engine.request import Chunk, Finish, TokenText
from workers.engine.routing.types import RequestRouting

Answer = Completion | ChatCompletion
StreamEvent = Completion | ChatCompletionChunk


@dataclass
class Told:
    """The tokens of one answer: each is told with the last of its text, or never. Those of a stop
    string are none of it, and one that a stop string begins in is told as far as it is shown."""

    _length: int = 0
    """Characters that were shown."""
    _waiting: list[TokenText] = field(default_factory=list)

    def by(self, chunk: Chunk) -> tuple[TokenText, ...]:
        """Those that this chunk makes certain."""
        self._length += len(chunk.text)
        self._waiting += chunk.logprobs
        if chunk.finish == "stop":
            shown = [one for one in self._waiting if one.offset < self._length]
            certain = [_up_to(self._length, one) for one in shown]
        elif chunk.finish:
            certain = self._waiting
        else:
            certain = self._waiting[: self._count()]
        self._waiting = [] if chunk.finish else self._waiting[len(certain) :]
        return tuple(certain)

    def _count(self) -> int:
        ends = [one.offset + len(one.text) for one in self._waiting]
        return next((at for at, end in enumerate(ends) if end > self._length), len(ends))


def _up_to(length: int, token: TokenText) -> TokenText:
    """The part of a token that lies within so many characters; half a character stays as it is."""
    cut = token.text[: length - token.offset]
    if cut == token.text or token.raw != token.text.encode():
        return token
    return replace(token, text=cut, raw=cut.encode())


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


def chat_logprobs(tokens: Sequence[TokenText]) -> ChatLogprobs | None:
    """Of a chat's answer, or of a piece of it."""
    if not tokens:
        return None
    content: list[ChatToken] = [
        {**_entry(one), "top_logprobs": [_entry(top) for top in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenText]) -> TextLogprobs | None:
    """Of a completion, or of a piece of it; offsets count the whole answer's characters."""
    if not tokens:
        return None
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [{top.text: top.logprob for top in one.top} for one in tokens],
        "text_offset": [one.offset for one in tokens],
    }


def _entry(token: TokenText) -> TokenEntry:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}
