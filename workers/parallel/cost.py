"""What expert parallelism sends, by formulas, and which exchange is the cheaper (DESIGN §5).

Bytes are those that one worker sends to others for one micro-batch, forward and backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb

from workers.spec import TrainSpec

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
    """Numbers that come back for the contrastive loss, where it is on."""


@dataclass(frozen=True)
class Passes:
    """What all forward passes of a run have in common."""

    contrastive: bool = False
    """The rank space comes back with the outputs."""
    recomputed: bool = False
    """Activations are checkpointed: the backward pass repeats each layer's forward pass."""

    @classmethod
    def of(cls, spec: TrainSpec) -> "Passes":
        """Those of a run."""
        return cls(spec.loss.contrastive_weight > 0, spec.model.activation_checkpointing)


def remote_owners(experts: int, slots: int, workers: int) -> float:
    """Other workers that a token goes to, on average, where all experts are equally likely:
    (W - 1) times the chance that a worker has one of its K experts."""
    without = experts - experts // workers
    return (workers - 1) * (1 - comb(without, slots) / comb(experts, slots))


def token_bytes(
    places: Sequence[RoutedPlace], workers: int, tokens: float, number_bytes: int
) -> float:
    """Of the exchange by tokens: hidden states and results, their gradients, indices and gates."""
    total = 0.0
    for place in places:
        row = 2 * (place.row + place.rank_space) * number_bytes
        row += place.slots * (INDEX_BYTES + 2 * GATE_BYTES)
        total += tokens * remote_owners(place.experts, place.slots, workers) * row
    return total


def weight_bytes(places: Sequence[RoutedPlace], workers: int, number_bytes: int) -> float:
    """Of the exchange by weights: gathered twice, and their gradients scattered once."""
    numbers = sum(place.expert_numbers for place in places)
    return 3 * numbers * number_bytes * (workers - 1) / workers


@dataclass(frozen=True)
class Bandwidth:
    """Measured bytes a second that a worker sends."""

    tokens: float
    """In all-to-alls."""
    weights: float
    """In all-gathers."""


@dataclass(frozen=True)
class Choice:
    """An exchange, and why."""

    exchange: str
    """tokens or weights."""
    reason: str = ""
    predicted_bytes: dict[str, float] = field(default_factory=dict)
    """By exchange, what each worker sends for one micro-batch."""

    @property
    def words(self) -> str:
        """For the log."""
        size = self.predicted_bytes[self.exchange] / 1e6
        return f"by {self.exchange}, {size:.3g} MB a worker and micro-batch: {self.reason}"


def choose(wanted: str, predicted: dict[str, float], bandwidth: Bandwidth) -> Choice:
    """The exchange that is `wanted`, or with auto the one that takes less time."""
    seconds = {name: predicted[name] / getattr(bandwidth, name) for name in predicted}
    if wanted != "auto":
        return Choice(wanted, "parallel.exchange asks for it", predicted)
    best, other = sorted(seconds, key=lambda name: seconds[name])
    reason = (
        f"{_figures(best, predicted, bandwidth, seconds)}, "
        f"{_figures(other, predicted, bandwidth, seconds)}"
    )
    return Choice(best, reason, predicted)


def _figures(
    name: str, predicted: dict[str, float], bandwidth: Bandwidth, seconds: dict[str, float]
) -> str:
    rate = getattr(bandwidth, name) / 1e9
    return (
        f"{name} would take {seconds[name]:.3g} s for a micro-batch's "
        f"{predicted[name] / 1e6:.3g} MB at {rate:.3g} GB/s"
    )
