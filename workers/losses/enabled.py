"""The auxiliary losses of a run: those whose weight is not 0, over all its routed layers."""

from collections.abc import Callable, Sequence
from pkgutil import resolve_name

import torch
from torch import Tensor

from workers.config.losses import AUXILIARY, LossSpec
from workers.losses.auxiliary import RoutedLayer


class EnabledLosses:
    """Each is the mean over the layers, and has a share in the step's loss by the tokens that it
    was made from."""

    def __init__(self, spec: LossSpec, add: Callable[[Tensor], Tensor]) -> None:
        """`add` sums numbers over all workers."""
        self.weights, self.needs_rank_space = spec.enabled(), bool(spec.comparing())
        self._spec, self._add = spec, add
        self._functions = {name: resolve_name(AUXILIARY[name].function) for name in self.weights}

    def __call__(
        self, layers: Sequence[RoutedLayer], own: float, everyone: float
    ) -> dict[str, Tensor]:
        """Their values before the weights; a collective. `own` is the share in the step of this
        worker's tokens, for a mean over these; `everyone` that of all workers' tokens over the
        number of workers, for a loss that is made for a mean over workers."""
        return {
            name: torch.stack(self._terms(name, layers)).mean()
            * (own if AUXILIARY[name].sums is None else everyone)
            for name in (self.weights if layers else ())
        }

    def _terms(self, name: str, layers: Sequence[RoutedLayer]) -> list[Tensor]:
        """Every layer's."""
        function, counted = self._functions[name], AUXILIARY[name].sums
        if counted is None:
            return [function(layer, self._spec) for layer in layers]
        sums = self._summed(resolve_name(counted), layers)
        return [function(layer, self._spec, one) for layer, one in zip(layers, sums, strict=True)]

    def _summed(
        self, count: Callable[[RoutedLayer], Tensor], layers: Sequence[RoutedLayer]
    ) -> Sequence[Tensor]:
        """The layers' numbers, summed over the workers as one message."""
        mine = [count(layer) for layer in layers]
        return torch.split(self._add(torch.cat(mine)), [len(one) for one in mine])
