"""What replicas answer to a golden prompt, and whether two answers are of the same model.

Equal tokens would be too much to ask: other hardware, and other requests in the same batch, round
otherwise, and where two tokens are as good as equally likely either may come (in bfloat16 two are
often exactly so). They would be too little as well: a model can be quite another one before its
likeliest token is. So it is the tokens' log-probabilities that are compared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from workers.engine.request import Chunk

EXACT = 0.02
"""Natural log-probabilities may be so far apart in float32 …"""
ROUNDED = 0.25
"""… and so far in bfloat16 or quantised. With SmolLM2-135M the batch moved them by up to 1e-5 and
0.09, and the one precision was up to 0.16 from the other."""
LOGPROBS = 2
"""Likeliest tokens to ask for: what `GoldenToken.margin` wants."""


@dataclass(frozen=True)
class Golden:
    """A short prompt that every replica answers greedily."""

    prompt: str
    tokens: int
    tolerance: float = EXACT
    """How far answers' log-probabilities may be apart."""


class GoldenToken(NamedTuple):
    """A token of an answer."""

    token: int
    logprob: float | None
    """What the model gave it; None of a token that ends the answer, which is not told."""
    margin: float | None
    """How much more that is than what it gave the second."""

    def doubtful(self, tolerance: float) -> bool:
        """Whether rounding may lead to another token."""
        return self.margin is None or self.margin <= tolerance

    def apart(self, other: "GoldenToken", tolerance: float) -> bool:
        """Whether more than rounding lies between the two, as far as they are told."""
        if self.logprob is None or other.logprob is None:
            return False
        return abs(self.logprob - other.logprob) > tolerance


GoldenAnswer = tuple[GoldenToken, ...]


def places(chunk: Chunk) -> GoldenAnswer:
    """A chunk of an answer that tells `LOGPROBS`."""
    told = zip_longest(chunk.tokens, chunk.logprobs)
    return tuple(
        GoldenToken(token, one.logprob, one.top[0].logprob - one.top[1].logprob)
        if one
        else GoldenToken(token, None, None)
        for token, one in told
    )


def from_json(told: Iterable[Sequence[Any]]) -> GoldenAnswer:
    """An answer out of a database."""
    return tuple(GoldenToken(*one) for one in told)


def alike(mine: GoldenAnswer, theirs: GoldenAnswer, tolerance: float) -> bool:
    """Whether one model can have given both."""
    for one, other in zip(mine, theirs, strict=False):
        if one.apart(other, tolerance):
            return False
        if one.token != other.token:  # from here on they continue different texts
            return one.doubtful(tolerance) and other.doubtful(tolerance)
    return len(mine) == len(theirs)


def shown(answer: GoldenAnswer) -> str:
    """Its tokens with their log-probabilities, for people: `71:-0.52 9:-1.3 2`."""
    return " ".join(
        str(place.token) if place.logprob is None else f"{place.token}:{place.logprob:.3g}"
        for place in answer
    )
