"""Single tokens as text, for their log-probabilities."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from workers.engine.request import TokenLogprobs, TokenText
from workers.engine.routing import RequestRouting


class TokenTexts:
    """Knows every token's bytes. llguidance reads them off any fast tokenizer, also those of half a
    character, which the tokenizer itself shows as a replacement character."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source = tokenizer
        with suppress(ValueError):  # of another kind: said when somebody wants it
            _ = self._tokens  # now: it takes a second in which no other thread runs

    def of(self, told: Iterable[TokenLogprobs]) -> tuple[TokenText, ...]:
        """Token by token, each with the likeliest in its place."""
        return tuple(
            self._text(one.token, one.logprob, tuple(self._text(*pair) for pair in one.top))
            for one in told
        )

    def named(self, routing: RequestRouting | None, tokens: Sequence[int]) -> RequestRouting | None:
        """The routing with the texts of its tokens, where it has each token's choice."""
        if routing is None or not routing.by_token:
            return routing
        read = tokens[: len(routing.by_token)]
        return replace(routing, texts=tuple(self._text(token, 0.0).text for token in read))

    def _text(self, token: int, logprob: float, top: tuple[TokenText, ...] = ()) -> TokenText:
        raw = self._tokens.decode_bytes([token])
        return TokenText(raw.decode(errors="replace"), raw, logprob, top)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return from_tokenizer(self._source, slices=[])
