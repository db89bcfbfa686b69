"""The routed places of an adapter, side by side: one column for each expert of each place.

Shapes: C columns (experts of all places), L places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from workers.engine.routing.types import RequestRouting

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Which columns belong to which place."""

    experts: tuple[tuple[str, int], ...]
    """Name and number of experts of each place, in the engine's order."""

    @classmethod
    def of(cls, routing: RequestRouting) -> "Places":
        """Those that a request went through."""
        return cls(tuple((layer.layer, len(layer.load)) for layer in routing.layers))

    @property
    def names(self) -> tuple[str, ...]:
        """The places' names."""
        return tuple(name for name, _ in self.experts)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Experts of each place, [L]."""
        return np.array([count for _, count in self.experts], dtype=np.int64)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First column of each place, [L]."""
        return np.cumsum(self.sizes) - self.sizes

    def sums(self, values: Array) -> Array:
        """[…, C] summed over each place's experts: […, L]."""
        summed: Array = np.add.reduceat(values, self.starts, axis=-1)
        return summed

    def spread(self, values: Array) -> Array:
        """[…, L] repeated for each of the place's experts: […, C]."""
        spread: Array = np.repeat(values, self.sizes, axis=-1)
        return spread

    def shares(self, values: Array) -> Array:
        """[…, C] so that each place sums to 1; even where it holds nothing."""
        total = self.spread(self.sums(values))
        even = np.broadcast_to(1 / self.spread(self.sizes.astype(float)), values.shape)
        return np.divide(values, total, out=even.copy(), where=total > 0)

    def split(self, values: Array) -> Mapping[str, Array]:
        """[…, C] by place."""
        parts = np.split(values, self.starts[1:], axis=-1)
        return dict(zip(self.names, parts, strict=True))


def column(routing: RequestRouting, field: str) -> Array:
    """`load` or `weight` of all places, [C]."""
    rows = (getattr(layer, field) for layer in routing.layers)
    return np.array(list(chain.from_iterable(rows)), dtype=np.float64)


def one_each(routing: RequestRouting, field: str) -> Array:
    """`entropy` or `margin` of each place, [L]."""
    return np.array([getattr(layer, field) for layer in routing.layers], dtype=np.float64)
