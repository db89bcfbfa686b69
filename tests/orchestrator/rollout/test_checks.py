"""The guard's statistics."""

import random

import pytest

from orchestrator.rollout.checks import SURE, surely


@pytest.mark.parametrize(
    ("count", "n", "sure"),
    [
        (0, 20, False),
        (5, 20, False),
        (6, 20, True),
        (20, 20, True),
        (40, 500, False),
        (45, 500, True),
    ],
)
def test_more_than_one_in_twenty(count: int, n: int, sure: bool) -> None:
    assert surely(count, n, 0.05) is sure


def test_everything_is_no_more_than_all() -> None:
    assert not surely(20, 20, 1.0)
    assert not surely(0, 0, 0.05)


@pytest.mark.parametrize("n", [20, 100, 500])
def test_it_is_wrong_as_rarely_as_it_says(n: int) -> None:
    """The rate is the limit itself; the least count that makes sure comes up that rarely."""
    least = next(count for count in range(n + 1) if surely(count, n, 0.05))
    draw = random.Random(n)
    rounds = 20_000 if n < 500 else 4_000
    wrong = sum(sum(draw.random() < 0.05 for _ in range(n)) >= least for _ in range(rounds))
    assert wrong / rounds < 2.5 * SURE
