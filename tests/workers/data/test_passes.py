"""Rows in passes that are counted by their tokens, against all the ways there are."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from random import Random

import pytest

from workers.config.parallel import PassLimit
from workers.data.batches import Batches
from workers.data.example import Example
from workers.data.passes import fewest_passes, in_passes


def padded(lengths: Sequence[int], parts: Sequence[slice]) -> int:
    return sum(len(lengths[part]) * max(lengths[part]) for part in parts)


def all_ways(lengths: Sequence[int], tokens: int) -> Iterator[list[slice]]:
    """Of rows that follow one another by length: no other passes have less padding."""
    inner = range(1, len(lengths))
    for count in range(len(lengths)):
        for cuts in combinations(inner, count):
            ends = (0, *cuts, len(lengths))
            parts = [slice(*pair) for pair in pairwise(ends)]
            if all(fits(lengths[part], tokens) for part in parts):
                yield parts


def fits(lengths: Sequence[int], tokens: int) -> bool:
    return len(lengths) == 1 or len(lengths) * max(lengths) <= tokens


@pytest.mark.parametrize("seed", range(12))
def test_the_fewest_passes_have_the_least_padding(seed: int) -> None:
    draw = Random(seed)
    lengths = sorted(draw.choices(range(1, 40), k=9))
    tokens = draw.randrange(20, 120)
    ways = list(all_ways(lengths, tokens))
    fewest = min(map(len, ways))
    assert fewest_passes(lengths, tokens) == fewest
    least = min(padded(lengths, way) for way in ways if len(way) == fewest)
    for passes in range(fewest, 10):
        found = in_passes(lengths, tokens, passes)
        assert [length for part in found for length in lengths[part]] == lengths
        assert len(found) == passes
        assert all(fits(lengths[part], tokens) for part in found)
        if passes == fewest:
            assert padded(lengths, found) == least


def test_a_row_that_is_too_long_is_a_pass_alone() -> None:
    assert in_passes([1, 1, 50], 10, 1) == [slice(0, 2), slice(2, 3)]


def test_rows_by_padding_rather_than_as_they_come() -> None:
    """Filled from either end, a pass would have rows of 50 beside rows of 100."""
    assert in_passes([50, 50, 50, 50, 99, 100], 300, 2) == [slice(0, 4), slice(4, 6)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_make_as_many_passes_of_the_same_rows(world: int) -> None:
    draw = Random(1)
    rows = [Example.of(range(draw.choice([3, 4, 5, 60])), [1]) for _ in range(50)]
    limit = PassLimit(tokens=64)
    workers = [Batches(rows, 16, seed=2, rank=rank, world=world) for rank in range(world)]
    seen = set()
    for step in range(workers[0].steps_per_epoch):
        passes = [worker.micro_batches(step, limit) for worker in workers]
        (count,) = {len(one) for one in passes}
        seen.add(count)
        mine = [worker.mine(step, limit) for worker in workers]
        assert sorted(row for one in mine for row in one) == sorted(workers[0].indices(step))
        for one in passes:
            assert all(len(part) * max(map(len, part)) <= limit.tokens for part in one)
        whole = workers[0].passes_of_all(step, limit)
        assert [rows[row] for row in whole[-1]] == passes[-1][-1]
    assert len(seen) > 1, "steps of short rows have fewer"


def test_half_of_the_largest_pass() -> None:
    rows = [Example.of(range(length - 1), [1]) for length in (4, 4, 4, 30)]
    batches = Batches(rows, 4)
    assert batches.halved(0, PassLimit()) == PassLimit(rows=2)
    assert batches.halved(0, PassLimit(tokens=120)) == PassLimit(tokens=60)
    assert batches.halved(0, PassLimit(tokens=60)) == PassLimit(tokens=6), "of what can be halved"
