"""Which validation rows a routing sample is of, and which of their tokens it leaves out."""

from collections.abc import Sequence
from itertools import takewhile
from random import Random

from workers.adapter.routing_sample import CACHE_PAGE
from workers.data.example import Example

SAMPLED = 256
"""Rows of a sample; how much requests vary shows in fewer already."""


def drawn(rows: int, count: int) -> frozenset[int]:
    """So many of the rows, always the same ones; drawn, since rows may come in a pattern."""
    return frozenset(Random(0).sample(range(rows), min(rows, count)))  # noqa: S311 (no secret)


def cached_prefix(examples: Sequence[Example]) -> int:
    """Tokens, in whole pages of an engine's cache, that all prompts begin with."""
    if len(examples) < 2:
        return 0
    least, most = (of(one.prompt for one in examples) for of in (min, max))
    pairs = zip(least, most, strict=False)  # what these two share, all share
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared // CACHE_PAGE * CACHE_PAGE
