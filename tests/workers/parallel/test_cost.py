"""What expert parallelism would send, and the choice between its exchanges."""

import itertools
import json
from dataclasses import asdict

import pytest

from workers.parallel.cost import (
    Bandwidth,
    RoutedPlace,
    choose,
    remote_owners,
    token_bytes,
    weight_bytes,
)

BLOCK = RoutedPlace(experts=8, slots=2, row=2 * 64, expert_numbers=30_000)


@pytest.mark.parametrize(("experts", "slots", "workers"), [(8, 2, 4), (6, 3, 2), (4, 1, 4)])
def test_remote_owners_is_the_mean_over_all_choices(experts: int, slots: int, workers: int) -> None:
    own = experts // workers
    choices = list(itertools.combinations(range(experts), slots))
    remote = [len({expert // own for expert in chosen} - {0}) for chosen in choices]
    assert remote_owners(experts, slots, workers) == pytest.approx(sum(remote) / len(remote))


def test_the_designs_formulas() -> None:
    """DESIGN §5, where a token's K choices live on K workers: 4 K D 2 bytes times (ep - 1) / ep."""
    width, tokens = 4096, 100
    place = RoutedPlace(experts=512, slots=1, row=2 * width, expert_numbers=9)
    small = tokens * (8 + 2 * 4) * 7 / 8
    expected = 4 * 1 * width * 2 * tokens * 7 / 8
    assert token_bytes([place], 8, tokens, 2) == pytest.approx(expected + small)
    numbers = 3 * 128 * (4096 + 14336)
    whole = RoutedPlace(experts=8, slots=2, row=2 * width, expert_numbers=numbers)
    assert weight_bytes([whole], 8, 2) == pytest.approx(9 * 128 * (4096 + 14336) * 2 * 7 / 8)


def test_auto_takes_what_is_faster_and_says_why() -> None:
    predicted = {"tokens": 8e6, "weights": 2e6}
    assert choose("auto", predicted, Bandwidth(1e9, 1e9)).exchange == "weights"
    fast_tokens = choose("auto", predicted, Bandwidth(5e9, 1e9))
    assert fast_tokens.exchange == "tokens"
    assert "8 MB at 5 GB/s" in fast_tokens.reason
    assert "2 MB at 1 GB/s" in fast_tokens.words
    assert choose("weights", predicted, Bandwidth(5e9, 1e9)).exchange == "weights"
    assert json.loads(json.dumps(asdict(fast_tokens)))["predicted_bytes"] == predicted


def test_bytes_grow_with_tokens_or_with_experts() -> None:
    assert token_bytes([BLOCK] * 2, 4, 50, 4) == 2 * token_bytes([BLOCK], 4, 50, 4)
    assert token_bytes([BLOCK], 4, 50, 4) < token_bytes([BLOCK], 4, 51, 4)
    assert weight_bytes([BLOCK], 4, 4) == 3 * 30_000 * 4 * 3 / 4
