"""Dropout on the inputs of A matrices: one mask for all the experts and projections that read them.

Shapes: T tokens, I features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 2**16


def dropped(input_TI: Tensor, rate: float | Tensor) -> Tensor:
    """The input of all A matrices that read it, under one mask. A GPU draws and applies it in one
    kernel, and keeps a byte of each number for the way back."""
    if input_TI.device.type != "cpu" and not isinstance(rate, Tensor):
        return functional.dropout(input_TI, rate) if rate else input_TI
    factor_TI = draw(input_TI, input_TI.shape[1], rate)
    return input_TI if factor_TI is None else input_TI * factor_TI


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


def draw(like_TI: Tensor, width: int, rate: float | Tensor) -> Tensor | None:
    """A factor for every feature, [T, width]: 0, or 1 / (1 - rate) where it stays; None if all do.

    A tensor `rate` [T] is each token's. On a CPU sixteen random bits decide on a feature: that
    takes a fourth of the time of torch's own dropout, which takes longer than a matmul of the
    layer. The rate is then rounded to a multiple of 2^-16.
    """
    tokens, device = len(like_TI), like_TI.device
    if isinstance(rate, Tensor):
        level_T1 = (rate * LEVELS).round().unsqueeze(1)
        factor_TI = _bits(tokens, width, device).ge_(level_T1 - LEVELS // 2)
        return factor_TI.mul_(LEVELS / (LEVELS - level_T1)).to(like_TI.dtype)
    if device.type != "cpu":  # two kernels, where the bits would take six
        return (
            like_TI.new_empty(tokens, width).bernoulli_(1 - rate).div_(1 - rate) if rate else None
        )
    level = round(rate * LEVELS)
    if not level:
        return None
    factor_TI = _bits(tokens, width, device).ge_(level - LEVELS // 2)
    return factor_TI.mul_(LEVELS / (LEVELS - level)).to(like_TI.dtype)


def _bits(tokens: int, width: int, device: torch.device) -> Tensor:
    """Uniform whole numbers from -2^15 to 2^15 - 1, [tokens, width], as float32."""
    if torch.compiler.is_compiling():
        bits = torch.randint(-LEVELS // 2, LEVELS // 2, (tokens, width), device=device)
        return bits.float()
    words = torch.empty(-(-tokens * width // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None).view(torch.int16)
    return bits[: tokens * width].view(tokens, width).float()
