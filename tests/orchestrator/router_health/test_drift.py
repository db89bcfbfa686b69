"""Drift of a real router: another domain is found, and the same domain is left in peace."""

import numpy as np
import pytest

from orchestrator.router_health.drift import Reference, divergence
from orchestrator.router_health.layout import Array, Places, column
from orchestrator.router_health.verdict import from_sample
from tests.orchestrator.traffic import Trained
from workers.engine.routing.types import RequestRouting

CONFIDENCE = 0.995
WINDOWS = 400


@pytest.fixture(scope="module")
def reference(trained: Trained) -> Reference:
    assert trained.manifest.routing_sample is not None
    found = from_sample(trained.manifest.routing_sample, Places.of(trained.home[0]))
    assert found is not None
    return found


def shares(requests: list[RequestRouting]) -> Array:
    return Places.of(requests[0]).shares(np.stack([column(one, "load") for one in requests]))


def scores(reference: Reference, requests: list[RequestRouting], window: int) -> list[float]:
    """Of many windows drawn from these requests, without the tolerance."""
    limit = reference.limit(window, CONFIDENCE)
    random, share_NC = np.random.default_rng(5), shares(requests)
    drawn = (random.choice(len(share_NC), window, replace=False) for _ in range(WINDOWS))
    return [limit.judge(share_NC[rows].mean(0), tolerance=0.0).score for rows in drawn]


@pytest.mark.parametrize("window", [20, 50, 100, 200])
def test_windows_of_the_same_domain_give_few_false_alarms(
    trained: Trained, reference: Reference, window: int
) -> None:
    found = scores(reference, trained.home, window)
    assert np.mean(np.array(found) > 1) <= 0.02
    assert max(found) > 0.2, "a limit that nothing comes near says nothing"


@pytest.mark.parametrize("window", [20, 50, 100, 200])
def test_a_domain_that_training_did_not_see_is_found(
    trained: Trained, reference: Reference, window: int
) -> None:
    assert np.mean(np.array(scores(reference, trained.clinic, window)) > 1) >= 0.98


def test_a_share_of_another_domain_is_found_in_larger_windows(
    trained: Trained, reference: Reference
) -> None:
    mixed = trained.home[:140] + trained.clinic[:60]
    limit = reference.limit(len(mixed), CONFIDENCE)
    assert limit.judge(shares(mixed).mean(0), tolerance=0.0).score > 1


def test_tokens_alone_would_cry_wolf(trained: Trained, reference: Reference) -> None:
    """Why requests are drawn: a limit that takes tokens for independent alarms all the time."""
    places, share_NC = reference.places, shares(trained.home)
    tokens = sum(one.tokens for one in trained.home[:50])
    random, mean_C = np.random.default_rng(6), reference.share_NC.mean(0)
    parts = [
        random.multinomial(2 * tokens, places.split(mean_C)[name], 1000) / (2 * tokens)
        for name in places.names
    ]
    naive_L = np.quantile(divergence(places, mean_C, np.concatenate(parts, 1)), CONFIDENCE, axis=0)
    drawn = [share_NC[random.choice(len(share_NC), 50, replace=False)] for _ in range(100)]
    alarms = [(divergence(places, mean_C, rows.mean(0)) > naive_L).any() for rows in drawn]
    assert np.mean(alarms) > 0.02


def test_the_limit_knows_how_well_the_reference_is_known(reference: Reference) -> None:
    """Few reference requests leave their own mean uncertain, however large the window."""
    few = Reference(reference.places, reference.share_NC[:20], "served")
    uncertain, certain = (one.limit(500, CONFIDENCE).distance_L for one in (few, reference))
    assert (uncertain > certain).all()


def test_divergence_is_a_symmetric_and_bounded_distance() -> None:
    places = Places((("a", 2), ("b", 3)))
    first, second = np.array([1.0, 0, 0.2, 0.3, 0.5]), np.array([0.0, 1, 0.2, 0.3, 0.5])
    assert divergence(places, first, second) == pytest.approx([np.log(2), 0], abs=2e-3)
    assert divergence(places, first, second) == pytest.approx(divergence(places, second, first))


def test_a_place_where_nothing_went_has_even_shares() -> None:
    places = Places((("a", 2), ("b", 3)))
    assert places.shares(np.array([3.0, 1, 0, 0, 0])).tolist() == pytest.approx(
        [0.75, 0.25, 1 / 3, 1 / 3, 1 / 3]
    )
