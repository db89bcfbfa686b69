"""What training adds to the cross-entropy: the weights, and a table of the losses. No torch."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from workers.config.base import NonNegative, PositiveInt, Spec


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A loss of the routed layers. Training minimises it, and reports it before its weight as
    `train/NAME` where the weight is not 0."""

    function: str
    """`module:name` of the function, imported when a run begins: takes a layer's `RoutedLayer` and
    the LossSpec, and gives a mean over the layer's real tokens on this worker."""
    weight_field: str
    """The field of LossSpec that holds its weight."""
    says: str
    """What its value says, for people: the help of its Prometheus series."""
    sums: str | None = None
    """`module:name` of a function that makes numbers of a `RoutedLayer`. The loss then takes their
    sum over all workers too, and must be made for a mean over workers."""
    needs_rank_space: bool = False
    """Whether it reads `RoutedLayer.rank_space`: experts then need an A matrix each."""
    short: str | None = None
    """Its name in a run's status line; None leaves it out there."""


AUXILIARY = {
    "load_balance": AuxiliaryLoss(
        "workers.losses.auxiliary:load_balance",
        "load_balance_weight",
        "Balance loss unweighted; 1 is even",
        sums="workers.losses.auxiliary:expert_load",
        short="balance",
    ),
    "z_loss": AuxiliaryLoss(
        "workers.losses.auxiliary:z_loss",
        "z_loss_weight",
        "Router z-loss unweighted; smaller logits give less",
    ),
    "contrastive": AuxiliaryLoss(
        "workers.losses.auxiliary:contrastive",
        "contrastive_weight",
        "Contrastive loss unweighted; experts that differ give less",
        needs_rank_space=True,
    ),
}
"""By name. A new one is a function, an entry here and its weight in LossSpec."""


class LossSpec(Spec):
    """Weights of what is added to the cross-entropy."""

    load_balance_weight: NonNegative = 0.01
    """Weight of E * sum_e f_e P_e / K, which is 1 for a uniform router."""
    z_loss_weight: NonNegative = 0.0
    """Weight of mean(logsumexp(router logits)^2)."""
    contrastive_weight: NonNegative = 0.0
    """Weight of the contrastive loss between experts (arXiv 2402.12851); 0 costs nothing."""
    contrastive_temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the contrastive loss."""
    contrastive_anchors: PositiveInt = 1024
    """Routed (token, expert) pairs sampled for each layer: bounds its memory."""

    def enabled(self) -> dict[str, float]:
        """The weights that are not 0, by the losses' names."""
        weights = {name: getattr(self, loss.weight_field) for name, loss in AUXILIARY.items()}
        return {name: weight for name, weight in weights.items() if weight}

    def comparing(self) -> list[str]:
        """The weights' fields of those enabled that compare experts in rank space."""
        losses = (AUXILIARY[name] for name in self.enabled())
        return [loss.weight_field for loss in losses if loss.needs_rank_space]
