"""What expert parallelism would send, and the choice between its exchanges."""

import itertools
import json
from dataclasses import asdict

import pytest

from workers.parallel.cost import (
    RoutedPlace,
    faster,
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
    """Where a token's K choices live on K workers: 4 K D 2 bytes times (ep - 1) / ep."""
    width, tokens = 4096, 100
    place = RoutedPlace(experts=512, slots=1, row=2 * width, expert_numbers=9)
    small = tokens * (8 + 2 * 4) * 7 / 8
    expected = 4 * 1 * width * 2 * tokens * 7 / 8
    assert token_bytes([place], 8, tokens, 2) == pytest.approx(expected + small)
    numbers = 3 * 128 * (4096 + 14336)
    whole = RoutedPlace(experts=8, slots=2, row=2 * width, expert_numbers=numbers)
    assert weight_bytes([whole], 8, 2) == pytest.approx(9 * 128 * (4096 + 14336) * 2 * 7 / 8)


def test_what_checkpointing_repeats_is_sent_again() -> None:
    """Of the exchange by tokens; by weights, it gathers what the backward pass then need not."""
    place = RoutedPlace(experts=512, slots=1, row=2 * 4096, expert_numbers=9)
    once, twice = (token_bytes([place], 8, 100, 2, recomputed=again) for again in (False, True))
    forward = 100 * (2 * 4096 * 2 + 8 + 4) * 7 / 8
    assert twice - once == pytest.approx(forward)


def test_the_faster_one_is_taken_and_it_says_why() -> None:
    predicted = {"tokens": 8e6, "weights": 2e6}
    by_weights = faster(predicted, {"tokens": 0.3, "weights": 0.1})
    by_tokens = faster(predicted, {"tokens": 0.1, "weights": 0.3})
    assert (by_weights.exchange, by_tokens.exchange) == ("weights", "tokens")
    assert by_tokens.words == (
        "by tokens, 8 MB a worker and micro-batch: the routed layers took 0.1 s for a micro-batch, "
        "and 0.3 s with 2 MB by weights"
    )
    assert json.loads(json.dumps(asdict(by_tokens)))["predicted_bytes"] == predicted


def test_bytes_grow_with_tokens_or_with_experts() -> None:
    assert token_bytes([BLOCK] * 2, 4, 50, 4) == 2 * token_bytes([BLOCK], 4, 50, 4)
    assert token_bytes([BLOCK], 4, 50, 4) < token_bytes([BLOCK], 4, 51, 4)
    assert weight_bytes([BLOCK], 4, 4) == 3 * 30_000 * 4 * 3 / 4
