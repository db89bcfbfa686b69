"""What expert parallelism sends, by formulas, and which exchange is the faster.

Bytes are those that one worker sends to others for one micro-batch, forward and backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb

from workers.config.train import TrainSpec

INDEX_BYTES = 8
GATE_BYTES = 4
"""Of an expert's index (int64) and of a gate (float32)."""


@dataclass(frozen=True)
class RoutedPlace:
    """A feed-forward block or linear with experts, as far as its exchange costs."""

    experts: int
    slots: int
    """Experts of a token."""
    row: int
    """Numbers of a token's hidden state and of the output that comes back, together."""
    expert_numbers: int
    """Numbers that are trained in all its experts."""
    rank_space: int = 0
    """Numbers that come back for losses that compare experts in rank space."""


@dataclass(frozen=True)
class Passes:
    """What all forward passes of a run have in common."""

    rank_space: bool = False
    """The rank space comes back with the outputs."""
    recomputed: bool = False
    """Activations are checkpointed: the backward pass repeats each layer's forward pass."""

    @classmethod
    def of(cls, spec: TrainSpec) -> "Passes":
        """Those of a run."""
        return cls(bool(spec.loss.comparing()), spec.model.activation_checkpointing)


def remote_owners(experts: int, slots: int, workers: int) -> float:
    """Other workers that a token goes to, on average, where all experts are equally likely:
    (W - 1) times the chance that a worker has one of its K experts."""
    without = experts - experts // workers
    return (workers - 1) * (1 - comb(without, slots) / comb(experts, slots))


def token_bytes(
    places: Sequence[RoutedPlace],
    workers: int,
    tokens: float,
    number_bytes: int,
    *,
    recomputed: bool = False,
) -> float:
    """Of the exchange by tokens: hidden states and results, their gradients, indices and gates;
    all but the gradients once more where activations are `recomputed`."""
    total, forward = 0.0, 2 if recomputed else 1
    for place in places:
        row = (forward + 1) * (place.row + place.rank_space) * number_bytes
        row += place.slots * (forward * INDEX_BYTES + (forward + 1) * GATE_BYTES)
        total += tokens * remote_owners(place.experts, place.slots, workers) * row
    return total


def weight_bytes(places: Sequence[RoutedPlace], workers: int, number_bytes: int) -> float:
    """Of the exchange by weights: gathered twice, for the backward pass or by the forward pass that
    it repeats, and their gradients scattered once."""
    numbers = sum(place.expert_numbers for place in places)
    return 3 * numbers * number_bytes * (workers - 1) / workers


@dataclass(frozen=True)
class ExchangeChoice:
    """An exchange, and why."""

    exchange: str
    """tokens or weights."""
    reason: str = ""
    predicted_bytes: dict[str, float] = field(default_factory=dict)
    """By exchange, what each worker sends for one micro-batch."""
    measured_seconds: dict[str, float] = field(default_factory=dict)
    """By exchange, what all routed layers take for one micro-batch, where both were tried."""

    @property
    def words(self) -> str:
        """For the log."""
        size = self.predicted_bytes[self.exchange] / 1e6
        return f"by {self.exchange}, {size:.3g} MB a worker and micro-batch: {self.reason}"


def faster(predicted: dict[str, float], seconds: dict[str, float]) -> ExchangeChoice:
    """The exchange that took less time, by exchange the predicted bytes and measured seconds."""
    best, other = sorted(seconds, key=lambda name: seconds[name])
    reason = (
        f"the routed layers took {seconds[best]:.3g} s for a micro-batch, "
        f"and {seconds[other]:.3g} s with {predicted[other] / 1e6:.3g} MB by {other}"
    )
    return ExchangeChoice(best, reason, predicted, seconds)
