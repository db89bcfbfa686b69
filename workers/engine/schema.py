"""Answers that obey a JSON schema: which tokens may come next, by the library llguidance."""

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workers.engine.request import RequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

SPACING: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""As `json.dumps` writes. Where white space is free, a model may write nothing else to the end."""


class Schema:
    """How far one answer has come. An end token is allowed where the answer is complete."""

    def __init__(self, matcher: LLMatcher, columns: int) -> None:
        self._fresh = matcher
        self.restart(())
        self._bits = np.zeros(-(-columns // 32), dtype=np.int32)
        self._columns = columns

    def restart(self, tokens: Sequence[int]) -> None:
        """The answer consists of these tokens."""
        self._matcher = self._fresh.deep_copy()
        self._matcher.consume_tokens(list(tokens))

    def allowed(self) -> Tensor:
        """True for tokens that may come next, one for each of the logits' columns."""
        self._bits.fill(0)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return torch.from_numpy(allowed[: self._columns].astype(bool))

    def push(self, token: int) -> None:
        """A token was drawn."""
        self._matcher.consume_token(token)

    @property
    def error(self) -> str:
        """Why it cannot go on; empty while it can."""
        return " ".join(str(self._matcher.get_error()).split())[:200]


class Schemas:
    """Makes them, for one tokenizer and one set of end tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, columns: int, stops: Sequence[int]
    ) -> None:
        self._source, self._columns, self._stops = tokenizer, columns, list(stops)
        self._lock = threading.Lock()

    def schema(self, text: str) -> Schema:
        """For one answer. May take a second; RequestError says what is wrong with the schema, or
        that the base's tokenizer is of a kind that cannot do it."""
        with self._lock:
            tokenizer = self._tokenizer
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=SPACING)
        except ValueError as error:
            raise refused_schema(error) from None
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise refused_schema(matcher.get_error())
        schema = Schema(matcher, self._columns)
        first = schema.allowed().nonzero().flatten().tolist()
        if set(first) <= set(self._stops):
            raise refused_schema("no text fits the schema")
        return schema

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        try:
            return from_tokenizer(self._source, self._columns, self._stops)
        except ValueError as error:
            raise RequestError(
                f"answers by a schema are not possible with this base's tokenizer: {error}",
                "response_format",
            ) from None


def refused_schema(reason: object) -> RequestError:
    """The schema is to blame, also where that shows only in the middle of an answer."""
    said = " ".join(str(reason).split())[:300]
    return RequestError(f"response_format: {said}", "response_format", code="invalid_schema")
