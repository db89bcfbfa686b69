"""Log-probabilities in OpenAI's two shapes: of the tokens that the answer's text is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.openai.answers import ChatLogprobs, ChatToken, TextLogprobs, TokenEntry
from workers.engine.request import Chunk, TokenText


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
