"""All rows of a run's sources, mixed as they are read: one pass of a stream.

Nobody knows how many rows a source has. So rows are taken from all sources in turn, as many as
their files have bytes, and all of them end at about the same time.
"""

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from itertools import islice
from math import floor
from random import Random

from workers.config.data import DataSpec
from workers.data.rows import UnreadRow, unread_rows
from workers.data.sources.records import size, streamed_records


def one_pass(data: DataSpec, seed: int, number: int) -> Iterator[UnreadRow]:
    """The rows of a pass (from 0), each as often as its source's weight says. The files of a source
    come in a new order each time, but where `max_rows` takes the first ones. InputError."""
    sources = [_rows_of(data, at, seed, number) for at in range(len(data.sources))]
    rates = _rates(data) if len(sources) > 1 else [1.0]
    # The first of those that are behind comes next: they are `(rows taken + 1/2) / rate` far.
    behind = [(0.5 / rate, at) for at, rate in enumerate(rates)]
    heapq.heapify(behind)
    while behind:
        far, at = behind[0]
        if (row := next(sources[at], None)) is None:
            heapq.heappop(behind)
            continue
        heapq.heapreplace(behind, (far + 1 / rates[at], at))
        yield row


def copies(weight: Fraction, place: str, number: int) -> int:
    """How often the row of a place comes in a pass. In the long run it is as often as the weight
    says, for every row: 0.5 is every other time, for one half of the rows in even passes."""
    if weight.denominator == 1:
        return int(weight)
    drawn = blake2b(place.encode(errors="surrogatepass"), digest_size=8).digest()
    first = Fraction(int.from_bytes(drawn, "big"), 2**64)
    return floor(first + (number + 1) * weight) - floor(first + number * weight)


def _rows_of(data: DataSpec, at: int, seed: int, number: int) -> Iterator[UnreadRow]:
    """Of one source."""
    one, weight = data.sources[at], Fraction(str(data.sources[at].weight))
    order = None if data.max_rows else Random(f"{seed}/{number}/source {at}")  # noqa: S311
    read = partial(streamed_records, order=order)
    for row in islice(unread_rows(data, one.source, one.task, read), data.max_rows):
        for _ in range(copies(weight, f"{seed}/{at}/{row.where}", number)):
            yield row


def _rates(data: DataSpec) -> Sequence[float]:
    """How many rows of each source come while one of the others does."""
    sizes = [size(one.source) for one in data.sources]
    known = [one for one in sizes if one]
    usual = sum(known) / len(known) if known else 1.0
    pairs = zip(sizes, data.sources, strict=True)
    return [(usual if some is None else some) * one.weight for some, one in pairs]
