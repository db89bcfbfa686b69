"""An auxiliary loss as a contributor writes it: a function, an entry of the table, a weight."""

import torch
from torch import Tensor

from workers.config.base import NonNegative
from workers.config.losses import AuxiliaryLoss, LossSpec
from workers.config.train import TrainSpec
from workers.losses.auxiliary import RoutedLayer


def entropy(layer: RoutedLayer, spec: LossSpec) -> Tensor:
    """Mean entropy of the router over real tokens."""
    real_T = torch.ones(len(layer.routing.expert_TK)) if layer.mask_T is None else layer.mask_T
    entropy_T = torch.special.entr(layer.routing.probs_TE).sum(-1)
    return (entropy_T * real_T).sum() / real_T.sum()


TOY = AuxiliaryLoss("tests.workers.losses.toy_loss:entropy", "toy_weight", "Router's entropy")


class ToyLossSpec(LossSpec):
    """With a further weight."""

    toy_weight: NonNegative = 0.0
    """Weight of the router's entropy."""


class ToyTrainSpec(TrainSpec):
    """A run that knows it."""

    loss: ToyLossSpec = ToyLossSpec()
