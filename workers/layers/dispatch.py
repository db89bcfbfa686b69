"""The one seam for expert parallelism: where a token's experts run.

Shapes: n rows that reached this place, T tokens, D width, K choices of each row.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from workers.layers.router import Routing


class Dispatched(NamedTuple):
    """Rows for the experts that live here."""

    hidden_nD: Tensor
    expert_nK: Tensor
    """Indices into the experts that live here."""
    gate_nK: Tensor


class TokenDispatcher(Protocol):
    """Brings tokens to their experts and the experts' weighted outputs back."""

    def dispatch(self, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Send each token to the owners of its experts."""

    def combine(self, output_nO: Tensor, dispatched: Dispatched) -> Tensor:
        """Return the outputs to the tokens, [T, out]; shares of one token are added up."""


class LocalTokenDispatcher:
    """All experts live in this process: nothing moves."""

    def dispatch(self, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Every token as it stands, with its chosen experts."""
        return Dispatched(hidden_TD, routing.expert_TK, routing.gate_TK)

    def combine(self, output_nO: Tensor, dispatched: Dispatched) -> Tensor:
        """The outputs as they stand."""
        del dispatched
        return output_nO
