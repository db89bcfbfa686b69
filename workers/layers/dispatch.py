"""The one seam for expert parallelism: where a token's experts run.

Shapes: n rows that reached this place, T tokens, D width, K choices of each row, E experts in all.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from workers.layers.routing.base import Routing


class Dispatched(NamedTuple):
    """Rows for the experts that live here."""

    hidden_nD: Tensor
    expert_nK: Tensor
    """Indices into the experts that live here; their number is the void."""
    gate_nK: Tensor
    experts: int
    """How many experts live here."""
    moved: bool = False
    """Whether the rows are others than this worker's tokens: its frozen output is then its own."""
    journey: Any = None
    """What the dispatcher wants to know of the way back."""


class TokenDispatcher(Protocol):
    """Brings tokens and experts together, and the experts' weighted outputs back to the tokens."""

    @property
    def brings_rank_space(self) -> bool:
        """Whether the rank space comes back with the outputs: settled for a whole run. A forward
        pass that checkpointing repeats, where nobody records, must send what the first one sent."""

    def dispatch(self, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Send each token to the owners of its experts."""

    def experts(
        self, shards: Callable[[], Sequence[Tensor]], sent: Dispatched
    ) -> AbstractContextManager[Sequence[Tensor] | None]:
        """The weights of the experts that the rows name, one row for each, for the length of the
        computation with them; `shards` gives those that live here. None: they are all."""

    def combine(self, parts: Sequence[Tensor], sent: Dispatched) -> list[Tensor]:
        """Return results [n, ...] to the tokens, [T, ...]; shares of one token are added up."""


class LocalTokenDispatcher:
    """All experts live in this process: nothing moves."""

    brings_rank_space = True

    def dispatch(self, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Every token as it stands, with its chosen experts."""
        experts = routing.logits_TE.shape[1]
        return Dispatched(hidden_TD, routing.expert_TK, routing.gate_TK, experts)

    def experts(
        self, shards: Callable[[], Sequence[Tensor]], sent: Dispatched
    ) -> AbstractContextManager[None]:
        """Those that live here."""
        del shards, sent
        return nullcontext()

    def combine(self, parts: Sequence[Tensor], sent: Dispatched) -> list[Tensor]:
        """The results as they stand."""
        del sent
        return list(parts)
