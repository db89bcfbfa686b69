"""A module's weight that an adapter trains a copy of: of the embedding, or of the output head."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call


class TrainedWeight(nn.Module):
    """The copy: float32 beside a base that may be bfloat16. The module computes with it what it
    computes with its own weight."""

    leaf: ClassVar[str] = "weight"
    """What a canonical name ends in."""

    def __init__(self, base: nn.Module) -> None:
        """As the base's own weight is."""
        super().__init__()
        weight = base.weight
        assert isinstance(weight, Tensor)
        precision = torch.promote_types(weight.dtype, torch.float32)
        self.weight = nn.Parameter(weight.detach().to(precision, copy=True))
        self._used: tuple[object, Tensor] | None = None
        """In the base's precision, kept while nothing is trained; and of which state that is."""

    @property
    def own(self) -> nn.Parameter:
        """What is trained."""
        return self.weight

    def forward(self, base: nn.Module, given: Tensor) -> Tensor:
        """What `base` gives, with this weight in place of its own."""
        output: Tensor = functional_call(base, {"weight": self._as(base)}, (given,))
        return output

    def _as(self, base: nn.Module) -> Tensor:
        own = base.weight
        assert isinstance(own, Tensor)
        if own.dtype == self.weight.dtype:
            return self.weight
        if self.training or torch.is_grad_enabled():
            self._used = None
            return self.weight.to(own.dtype)
        state = self.weight.data_ptr(), self.weight._version
        if self._used is None or self._used[0] != state:
            with torch.inference_mode(mode=False):
                self._used = state, self.weight.detach().to(own.dtype)
        return self._used[1]
