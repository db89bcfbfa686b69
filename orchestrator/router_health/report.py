"""What is told of a version's routers: figures of each layer, and whether its traffic has drifted.

Shapes: E experts of a layer.
"""

import math
from typing import Any, Literal

import numpy as np

from orchestrator.registry.router_gate import RouterGate
from orchestrator.router_health.drift import Source
from orchestrator.router_health.layout import Array
from orchestrator.router_health.window import RoutingWindow
from workers.config.base import Spec


class LayerHealth(Spec):
    """One routed place, over the latest requests."""

    layer: str
    load: tuple[float, ...]
    """Share of the slots that each expert got."""
    weight: tuple[float, ...]
    """Share of the gates that each expert got."""
    cv: float
    """Coefficient of variation of the load: 0 is even, sqrt(E - 1) is one expert for all."""
    entropy: float
    """Entropy of the load over log E: 1 is even, 0 is one expert for all."""
    doubt: float
    """Entropy of the router's own probabilities over log E, mean of the tokens: 0 is certain."""
    margin: float
    """Probability of the first expert less the second's, mean of the tokens."""
    dead: tuple[int, ...]
    """Experts that got less than a twentieth of an even share."""


class HealthVerdict(Spec):
    """Whether the traffic of a version is still what it was made for."""

    version: str
    state: Literal["unknown", "steady", "suspect", "drifted"]
    """drifted: windows lie beyond their limit, as many in a row as it takes; suspect: fewer."""
    sustained: int = 0
    """So many whole windows, the last among them, lie beyond the limit one after the other."""
    judged: int = 0
    """Whole windows judged, of those that are kept."""
    window: int
    """Requests of a window."""
    score: float | None = None
    """Divergence of the last window over its limit, of the worst layer."""
    layer: str | None = None
    """The worst layer."""
    divergence: float | None = None
    """Its Jensen-Shannon divergence from the reference, 0 … ln 2."""
    busiest: float = 0.0
    """Largest share that one user has of the requests in the windows that lie beyond, or the last
    one."""
    reference: Source | None = None
    """training: validation rows of the training; served: the first requests served here."""
    why: str
    """In words."""

    @property
    def drifted(self) -> bool:
        """Whether it is time to act."""
        return self.state == "drifted"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for logs."""
        return self.model_dump(mode="json")


class VersionHealth(Spec):
    """One version under a name."""

    version: str
    requests: int
    """Requests that the figures are of: the latest ones."""
    tokens: int
    """Their tokens, as far as these passed through the routers."""
    layers: tuple[LayerHealth, ...]
    drift: HealthVerdict


class Health(Spec):
    """All versions that answered to a name of late; the latest to answer comes last."""

    name: str
    versions: tuple[VersionHealth, ...]


def layers(tally: RoutingWindow) -> tuple[LayerHealth, ...]:
    """Each place of a tally of at least one token."""
    places, tokens = tally.places, max(tally.tokens, 1)
    load = places.split(places.shares(tally.load_C))
    weight = places.split(places.shares(tally.weight_C))
    means = zip(tally.entropy_L / tokens, tally.margin_L / tokens, strict=True)
    return tuple(
        _layer(name, load[name], weight[name], float(doubt), float(margin))
        for name, (doubt, margin) in zip(places.names, means, strict=True)
    )


def _layer(name: str, load_E: Array, weight_E: Array, doubt: float, margin: float) -> LayerHealth:
    experts, positive = len(load_E), load_E[load_E > 0]
    return LayerHealth(
        layer=name,
        load=tuple(load_E.tolist()),
        weight=tuple(weight_E.tolist()),
        cv=float(load_E.std() * experts),
        entropy=float(-(positive * np.log(positive)).sum() / math.log(max(experts, 2))),
        doubt=doubt,
        margin=margin,
        dead=tuple(np.flatnonzero(load_E < RouterGate.dead_share / experts).tolist()),
    )
