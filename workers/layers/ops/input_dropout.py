"""One dropout mask for linears that read the same input, as q, k and v do.

Shapes: T tokens, I features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.layers.ops.dropout import dropped


@dataclass(frozen=True)
class _Drop:
    """A tensor, and what dropout made of it."""

    input_TI: Tensor
    storage: torch.UntypedStorage
    version: int
    rate: float
    output_TI: Tensor

    @classmethod
    def of(cls, input_TI: Tensor, rate: float) -> "_Drop":
        storage, version = input_TI.untyped_storage(), input_TI._version
        return cls(input_TI, storage, version, rate, dropped(input_TI, rate))

    def is_of(self, input_TI: Tensor, rate: float) -> bool:
        """Whether that was these very numbers, in this or another view of them."""
        mine = self.input_TI
        return (
            self.storage is input_TI.untyped_storage()
            and (self.version, self.rate) == (input_TI._version, rate)
            and (mine.storage_offset(), mine.shape) == (input_TI.storage_offset(), input_TI.shape)
            and mine.stride() == input_TI.stride()
        )


class InputDropout:
    """Dropout of the inputs of an adapter's A matrices. Inside a `shared` block those that read one
    tensor, as q, k and v do, get it under one mask, which is drawn, applied and kept once.

    The block holds for a forward pass and its backward pass: what is recomputed there reads tensors
    of its own, and so draws what was drawn.
    """

    def __init__(self) -> None:
        self._sharing = False
        self._last: _Drop | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep what was read last, for who reads it next."""
        self._sharing = True
        try:
            yield
        finally:
            self._sharing, self._last = False, None

    def __call__(self, input_TI: Tensor, rate: float) -> Tensor:
        """The input of one more A matrix. Compiled layers draw a mask for each: what a graph keeps
        for later would have to leave it."""
        if torch.compiler.is_compiling() or not (self._sharing and rate):
            return dropped(input_TI, rate)
        if self._last is None or not self._last.is_of(input_TI, rate):
            self._last = None  # before the next one is made
            self._last = _Drop.of(input_TI, rate)
        return self._last.output_TI
