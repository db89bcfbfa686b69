"""Single tokens as text, for their log-probabilities, and where in an answer they stand."""

import codecs
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import cached_property

from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from workers.engine.request import TokenLogprobs, TokenText
from workers.engine.routing.types import RequestRouting


class TokenTexts:
    """Knows every token's bytes. llguidance reads them off any fast tokenizer, also those of half a
    character, which the tokenizer itself shows as a replacement character."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = frozenset(token for token, one in added.items() if one.special)
        with suppress(ValueError):  # of another kind: said when somebody wants it
            _ = self._tokens  # now: it takes a second in which no other thread runs

    def with_special(self) -> "TokenTexts":
        """The same for answers in which special tokens are text."""
        other = copy(self)
        other._special = frozenset()
        return other

    def of(self, told: Iterable[TokenLogprobs], offsets: Iterable[int]) -> tuple[TokenText, ...]:
        """Token by token, each with the likeliest in its place."""
        return tuple(
            replace(
                self._text(one.token, one.logprob),
                top=tuple(self._text(*pair) for pair in one.top),
                offset=offset,
            )
            for one, offset in zip(told, offsets, strict=False)
        )

    def named(self, routing: RequestRouting | None, tokens: Sequence[int]) -> RequestRouting | None:
        """The routing with the texts of its tokens, where it has each token's choice; of those that
        the engine had read beyond these, as it does until it hears of a stop string, without it."""
        if routing is None or not routing.by_token:
            return routing
        by_token = routing.by_token[: len(tokens)]
        texts = tuple(self._text(token, 0.0).text for token in tokens[: len(by_token)])
        return replace(routing, by_token=by_token, texts=texts)

    def raw(self, token: int) -> bytes:
        """What it adds to an answer: a special token nothing."""
        return b"" if token in self._special else self._tokens.decode_bytes([token])

    def _text(self, token: int, logprob: float) -> TokenText:
        shown = self._tokens.decode_bytes([token]).decode(errors="replace")
        return TokenText(shown, self.raw(token), logprob)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return from_tokenizer(self._source, slices=[])


class Offsets:
    """Where in an answer's text its tokens begin: at the character that has their first byte.

    A character's bytes may be parted among tokens, and one token may end a character and begin
    another. Bytes that are no text are one character each time that a decoder gives up on them.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = self._decoded = 0

    def next(self, raw: bytes, decoded: int) -> int:
        """That of the next token. `decoded`: characters of the answer that its tokens up to this
        one make for certain; what they say wins over the bytes, of which a tokenizer may drop a
        space at the beginning."""
        self._begun += len(self._decoder.decode(raw[:1]))
        open_, _ = self._decoder.getstate()
        start = self._begun if open_ or not raw else self._begun - 1
        self._begun += len(self._decoder.decode(raw[1:]))
        if decoded > self._decoded:
            start = max(self._decoded, start - (self._begun - decoded))
            self._begun = self._decoded = decoded
            self._decoder.reset()
        return start
