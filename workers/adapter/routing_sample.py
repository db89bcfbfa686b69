"""How single validation rows were routed, small enough for a manifest. No torch.

A mean load says where a router sends tokens, but not how much that varies from one request to the
next; what is drift and what is chance can be told from rows alone.
"""

import base64
import binascii
import sys
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import Field

from workers.config.base import InputError, PositiveInt, Spec

CACHE_PAGE = 32
"""Tokens of a page of an engine's cache. What all prompts begin with is read once, page by page,
and passes no router again; so samples leave it out."""
LARGEST = 2**16 - 1
"""What a count is cut to; rows that a model can be trained on do not come near it."""
MAX_NUMBERS = 2**18
"""Counts of a sample at most: about 300 kB of a manifest, and mostly far less."""


class RoutingSample(Spec):
    """Slots that went to each expert, for each of some validation rows."""

    experts: dict[str, PositiveInt]
    """Experts of each routed place. The columns are those of the places in alphabetical order."""
    rows: Annotated[int, Field(gt=0, le=2**16)]
    """Rows of the table."""
    prefix: Annotated[int, Field(ge=0)] = 0
    """Tokens that all prompts begin with, in whole pages of an engine's cache, and that are not
    counted."""
    counts: str
    """The table [rows, columns] of little-endian 16-bit numbers, through zlib and base64."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Sequence[int]]], prefix: int = 0) -> Self | None:
        """A sample of rows, each with its counts by place but for its first `prefix` tokens; the
        first ones where that is too many. None without rows or places."""
        experts = {place: len(counts) for place, counts in sorted(rows[0].items())} if rows else {}
        if not experts:
            return None
        kept = rows[: max(MAX_NUMBERS // sum(experts.values()), 1)]
        numbers = array("H")
        for row in kept:
            for place in experts:
                numbers.extend(min(count, LARGEST) for count in row[place])
        packed = zlib.compress(_little_endian(numbers).tobytes(), 9)
        counts = base64.b64encode(packed).decode()
        return cls(experts=experts, rows=len(kept), prefix=prefix, counts=counts)

    def table(self) -> "array[int]":
        """The counts, row after row; InputError where they are damaged."""
        size = self.rows * sum(self.experts.values()) * 2
        try:
            unpack = zlib.decompressobj()
            raw = unpack.decompress(base64.b64decode(self.counts, validate=True), size + 1)
        except (binascii.Error, zlib.error) as error:
            raise InputError(f"routing_sample: is damaged: {error}") from None
        if len(raw) != size or not unpack.eof:
            raise InputError(f"routing_sample: does not hold {size} bytes")
        return _little_endian(array("H", raw))


def _little_endian(numbers: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
