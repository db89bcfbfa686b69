"""The auxiliary losses of a run: those whose weight is not 0, over all its routed layers."""

from collections.abc import Callable, Iterable, Sequence
from pkgutil import resolve_name

import torch
from torch import Tensor

from workers.config.losses import AUXILIARY, LossSpec
from workers.layers.routing.base import Router, Routing
from workers.losses.auxiliary import RoutedLayer


class EnabledLosses:
    """Each is the mean over the layers, and has a share in the step's loss by the tokens that it
    was made from."""

    def __init__(self, spec: LossSpec, add: Callable[[Tensor], Tensor]) -> None:
        """`add` sums numbers over all workers."""
        self.weights, self.needs_rank_space = spec.enabled(), bool(spec.comparing())
        self._spec, self._add = spec, add
        self._counts = {
            name: resolve_name(counted)
            for name in self.weights
            if (counted := AUXILIARY[name].sums) is not None
        }
        self._sent = 0
        self._functions = {name: resolve_name(AUXILIARY[name].function) for name in self.weights}

    def __call__(
        self, layers: Sequence[RoutedLayer], own: Tensor, everyone: Tensor
    ) -> dict[str, Tensor]:
        """Their values before the weights; a collective. `own` is the share in the step of this
        worker's tokens, for a mean over these; `everyone` that of all workers' tokens over the
        number of workers, for a loss that is made for a mean over workers."""
        found = {}
        for name in self.weights if layers else ():
            mean = torch.stack(self._terms(name, layers)).mean()
            share = own if AUXILIARY[name].sums is None else everyone
            found[name] = mean * share.to(mean.dtype)
        return found

    def _terms(self, name: str, layers: Sequence[RoutedLayer]) -> list[Tensor]:
        """Every layer's."""
        function, count = self._functions[name], self._counts.get(name)
        if count is None:
            return [function(layer, self._spec) for layer in layers]
        sums = self._summed(count, layers)
        return [function(layer, self._spec, one) for layer, one in zip(layers, sums, strict=True)]

    def begin(self) -> None:
        """A step begins."""
        self._sent = 0

    def finish(self, passes: int, routers: Iterable[Router]) -> None:
        """Send zeros in place of the numbers that this worker will not have in the first so many
        passes of a step: the others wait for them."""
        layers = [_untouched(router) for router in routers]
        each = [
            torch.cat([count(one) for one in layers]) for count in self._counts.values() if layers
        ]
        for numbers in (each * passes)[self._sent :]:
            self._add(torch.zeros_like(numbers))
            self._sent += 1

    def _summed(
        self, count: Callable[[RoutedLayer], Tensor], layers: Sequence[RoutedLayer]
    ) -> Sequence[Tensor]:
        """The layers' numbers, summed over the workers as one message."""
        mine = [count(layer) for layer in layers]
        message = torch.cat(mine)
        self._sent += 1
        return torch.split(self._add(message), [len(one) for one in mine])


def _untouched(router: Router) -> RoutedLayer:
    """What a layer does with one token that goes to no expert."""
    weight_ED = router.weight
    logits_TE = weight_ED.new_zeros(
        1, router.void, dtype=torch.promote_types(weight_ED.dtype, torch.float32)
    )
    void_TK = torch.full((1, router.slots), router.void, device=weight_ED.device)
    return RoutedLayer(
        Routing(logits_TE, void_TK, torch.zeros_like(void_TK, dtype=logits_TE.dtype))
    )
