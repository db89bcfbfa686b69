"""Log-probabilities in OpenAI's two shapes."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from workers.engine.request import TokenText


def chat_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any] | None:
    """Of a chat's answer, or of a piece of it."""
    if not tokens:
        return None
    content = [{**_entry(one), "top_logprobs": [_entry(top) for top in one.top]} for one in tokens]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenText], offset: int) -> dict[str, Any] | None:
    """Of a completion, or of a piece of it that begins behind `offset` characters."""
    if not tokens:
        return None
    ends = list(accumulate((len(one.text) for one in tokens), initial=offset))
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [{top.text: top.logprob for top in one.top} for one in tokens],
        "text_offset": ends[:-1],
    }


def _entry(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}
