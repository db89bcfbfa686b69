"""Whether a window of requests is routed as the requests of a reference are.

Tokens within a request are not independent, so textbook limits on their histograms (0.1 and 0.25 of
the population stability index) say nothing. Here requests are what is drawn: from the reference
come, with replacement, as many windows and references as one likes, and the distance between two
of those says how far apart the same traffic lies by chance (a two-sample bootstrap, Efron and
Tibshirani 1993, chapter 16). The limit holds for one number of requests only, and for the largest
of all places at once.

Shapes: N requests of the reference, B draws, C columns (experts of all places), L places.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.router_health.layout import Array, Places

Source = Literal["training", "served"]
DRAWS = 1000
"""Bootstrap draws: a limit at 0.995 rests on the five largest."""
SEED = 0
SMOOTHING = 1e-4
"""Share given to every expert, so that one that is never chosen has no distance without end."""


@dataclass(frozen=True)
class Reference:
    """Single requests of the traffic that windows are held against."""

    places: Places
    share_NC: Array
    """Each request's share of every expert."""
    source: Source
    """Rows of validation, or the first requests that were served."""
    prefix: int = 0
    """Tokens at the beginning of the requests that these shares leave out. Where more of them came
    from the cache, a request tells too little of itself to be compared."""

    def limit(self, window: int, confidence: float) -> "Limit":
        """Calibrate for windows of so many requests."""
        random, size = np.random.default_rng(SEED), len(self.share_NC)
        uniform = np.full(size, 1 / size)
        drawn = [
            random.multinomial(count, uniform, DRAWS) @ self.share_NC / count
            for count in (size, window)
        ]
        distance_BL = divergence(self.places, *drawn)
        # A place that varies much between requests may not hide one that hardly does.
        scale_L = np.maximum(distance_BL.mean(0), SMOOTHING**2)
        largest_B = (distance_BL / scale_L).max(1)
        limit = float(np.quantile(largest_B, confidence))
        return Limit(self, self.share_NC.mean(0), scale_L * limit)


@dataclass(frozen=True)
class Limit:
    """How far each place of a window may lie from the reference."""

    reference: Reference
    share_C: Array
    """The reference's mean."""
    distance_L: Array
    """Largest Jensen-Shannon divergence that is chance."""

    def judge(self, share_C: Array, tolerance: float) -> "Distance":
        """How far a window's mean lies off, in its limits: above 1 is drift."""
        places = self.reference.places
        found_L = divergence(places, self.share_C, share_C)
        score_L = found_L / np.maximum(self.distance_L, tolerance)
        worst = int(score_L.argmax())
        return Distance(float(score_L[worst]), places.names[worst], float(found_L[worst]))


@dataclass(frozen=True)
class Distance:
    """How far a window lies from the reference."""

    score: float
    """Divergence over its limit, of the place where that is largest; above 1 is drift."""
    place: str
    divergence: float
    """Jensen-Shannon divergence of that place, 0 … ln 2."""


def divergence(places: Places, first: Array, second: Array) -> Array:
    """Jensen-Shannon divergence (Lin 1991, in nats) of each place: […, C] and […, C] to […, L]."""
    p, q = (places.shares(places.shares(one) + SMOOTHING) for one in (first, second))
    middle = (p + q) / 2
    both = p * np.log(p / middle) + q * np.log(q / middle)
    return np.maximum(places.sums(both) / 2, 0.0)
