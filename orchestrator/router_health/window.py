"""Sums over the requests of a window: all that is kept of them.

Shapes: C columns (experts of all places), L places.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from orchestrator.router_health.layout import Array, Places, column, one_each
from workers.engine.routing.types import RequestRouting

GROUPS = 8
"""Numbers of cached tokens that a window tells apart; requests of further ones are not compared."""
SUMS = ("load_C", "weight_C", "entropy_L", "margin_L")


@dataclass
class Votes:
    """Requests of which as many tokens came from the cache."""

    share_C: Array
    """Sum of the requests' shares: here a long request counts as much as a short one, since its
    tokens are not independent of each other."""
    requests: int = 0


@dataclass
class RoutingWindow:
    """What some requests of one version chose."""

    places: Places
    start: int = 0
    """Requests of the version before these."""
    requests: int = 0
    tokens: int = 0
    load_C: Array = field(init=False)
    """Slots that went to each expert."""
    weight_C: Array = field(init=False)
    """Sum of the gates."""
    votes: dict[int, Votes] = field(default_factory=dict)
    """By the tokens that passed no router, since their keys and values were in the cache. Only
    requests that tell of the same part of their text can be compared."""
    users: Counter[str] = field(default_factory=Counter)
    """Requests of each."""
    entropy_L: Array = field(init=False)
    margin_L: Array = field(init=False)

    def __post_init__(self) -> None:
        columns, places = int(self.places.sizes.sum()), len(self.places.experts)
        self.load_C, self.weight_C = np.zeros(columns), np.zeros(columns)
        self.entropy_L, self.margin_L = np.zeros(places), np.zeros(places)

    def add(self, routing: RequestRouting, cached: int = 0) -> Array:
        """Count a request of which `cached` tokens passed no router; returns its shares [C]."""
        load_C = column(routing, "load")
        share_C = self.places.shares(load_C)
        self.requests += 1
        self.tokens += routing.tokens
        self.load_C += load_C
        self.weight_C += column(routing, "weight")
        if cached in self.votes or len(self.votes) < GROUPS:
            votes = self.votes.setdefault(cached, Votes(np.zeros_like(share_C)))
            votes.share_C += share_C
            votes.requests += 1
        self.entropy_L += one_each(routing, "entropy")
        self.margin_L += one_each(routing, "margin")
        return share_C

    def include(self, other: "RoutingWindow") -> None:
        """Add another window of the same places."""
        self.requests += other.requests
        self.tokens += other.tokens
        for name in SUMS:
            getattr(self, name).__iadd__(getattr(other, name))
