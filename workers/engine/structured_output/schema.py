"""Answers that obey a JSON schema: which tokens may come next, by the library llguidance."""

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from workers.engine.request import RequestError


class Compiled:
    """A schema's beginning, which all answers by it share."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher


class Schema:
    """How far one answer has come. An end token is allowed where the answer is complete."""

    def __init__(self, compiled: Compiled, columns: int) -> None:
        self._compiled = compiled
        self.restart(())
        self._bits = np.zeros(-(-columns // 32), dtype=np.int32)
        self._columns = columns

    def restart(self, tokens: Sequence[int]) -> None:
        """The answer consists of these tokens."""
        self._matcher = self._compiled.matcher.deep_copy()
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


def refused_schema(reason: object) -> RequestError:
    """The schema is to blame, also where that shows only in the middle of an answer."""
    said = " ".join(str(reason).split())[:300]
    return RequestError(f"response_format: {said}", "response_format", code="invalid_schema")
