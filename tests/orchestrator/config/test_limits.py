"""Allowances and lengths of time as people write them."""

import pytest

from orchestrator.config.limits import Allowance, span_seconds
from workers.config.base import InputError


@pytest.mark.parametrize(
    ("text", "amount", "seconds", "shown"),
    [
        ("60/min", 60, 60, "60/min"),
        (" 5 / second ", 5, 1, "5/s"),
        ("1000000/day", 10**6, 86400, "1000000/day"),
        ("7/h", 7, 3600, "7/h"),
    ],
)
def test_an_allowance_is_read_and_shown(text: str, amount: int, seconds: int, shown: str) -> None:
    read = Allowance.parse(text)
    assert (read.amount, read.seconds, str(read)) == (amount, seconds, shown)
    assert Allowance.parse(shown) == read


@pytest.mark.parametrize("text", ["", "60", "0/min", "-1/min", "1.5/s", "60/year", "9" * 20 + "/s"])
def test_what_is_no_allowance_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="60/min"):
        Allowance.parse(text)


def test_lengths_of_time() -> None:
    assert [span_seconds(text) for text in ("30d", "12h", "10min", "60s")] == [
        30 * 86400,
        12 * 3600,
        600,
        60,
    ]
    for text in ("", "30", "d", "0d", "1y", "-1d", "1000000d"):
        with pytest.raises(InputError, match="30d"):
            span_seconds(text)
