"""What one request's tokens chose so far, summed up place by place.

Shapes: P places, E experts, K slots, t tokens of the request.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from workers.engine.routing.types import LayerRouting, RequestRouting, TokenRouting

Places = tuple[str, ...]


class Sums(NamedTuple):
    """Sums over tokens, for places with the same number of experts."""

    load_PE: Tensor
    weight_PE: Tensor
    entropy_P: Tensor
    margin_P: Tensor

    def __add__(self, other: tuple[object, ...]) -> "Sums":
        assert isinstance(other, Sums)
        return Sums(*(one + more for one, more in zip(self, other, strict=True)))


class Choices(NamedTuple):
    """What single tokens chose; a slot with expert -1 is void."""

    position_t: Tensor
    """Where each is among the tokens that passed."""
    expert_PtK: Tensor
    gate_PtK: Tensor


class RoutingTally:
    """The routing of one request, as far as its tokens have passed."""

    def __init__(self, slot: str, by_token: bool) -> None:
        self.slot, self.by_token = slot, by_token
        self.tokens = 0
        """That passed."""
        self._sums: dict[Places, Sums] = {}
        self._choices: list[tuple[Places, Choices]] = []

    def add(self, places: Places, sums: Sums, choices: Choices | None) -> None:
        """Count more tokens at these places."""
        known = self._sums.get(places)
        self._sums[places] = sums if known is None else known + sums
        if choices is not None:
            self._choices.append((places, choices))

    def summary(self, order: Sequence[str]) -> RequestRouting:
        """All of it, the layers in this order."""
        layers: dict[str, LayerRouting] = {}
        for places, sums in self._sums.items():
            columns = zip(places, *(one.tolist() for one in sums), strict=True)
            for place, load, weight, entropy, margin in columns:
                counts = tuple(int(count) for count in load)
                layer = LayerRouting(place, counts, tuple(weight), entropy, margin)
                layers[place] = _sum(layers[place], layer) if place in layers else layer
        present = [place for place in order if place in layers]
        chosen = self._by_token(present) if self.by_token else ()
        return RequestRouting(self.tokens, tuple(layers[place] for place in present), chosen)

    def _by_token(self, order: Sequence[str]) -> tuple[tuple[TokenRouting, ...], ...]:
        found: dict[tuple[int, str], TokenRouting] = {}
        for places, choices in self._choices:
            positions = choices.position_t.tolist()
            experts, gates = choices.expert_PtK.tolist(), choices.gate_PtK.tolist()
            for place, expert_tK, gate_tK in zip(places, experts, gates, strict=True):
                rows = zip(positions, expert_tK, gate_tK, strict=True)
                found |= {(at, place): _token(e, g) for at, e, g in rows}
        return tuple(tuple(found[at, place] for place in order) for at in range(self.tokens))


def _token(experts: Sequence[int], gates: Sequence[float]) -> TokenRouting:
    real = [(expert, gate) for expert, gate in zip(experts, gates, strict=True) if expert >= 0]
    return TokenRouting(tuple(expert for expert, _ in real), tuple(gate for _, gate in real))


def _sum(one: LayerRouting, more: LayerRouting) -> LayerRouting:
    return LayerRouting(
        one.layer,
        tuple(a + b for a, b in zip(one.load, more.load, strict=True)),
        tuple(a + b for a, b in zip(one.weight, more.weight, strict=True)),
        one.entropy + more.entropy,
        one.margin + more.margin,
    )
