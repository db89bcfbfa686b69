"""Dropout on the inputs of A matrices: one mask for all the experts and projections that read them.

Shapes: T tokens, I features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 2**16


class OwnRate(NamedTuple):
    """The dropout of one adapter's tokens."""

    rate: float
    seed: int | None = None
    """Draws the same mask whenever it is asked; None draws from torch's state."""

    def again(self) -> "OwnRate":
        """For a second mask of the same tokens."""
        return self if self.seed is None else self._replace(seed=self.seed + 1)

    def factor(self, like_TI: Tensor, width: int) -> Tensor | None:
        """See `draw`."""
        if not self.rate:
            return None
        generator = None
        if self.seed is not None:
            generator = torch.Generator(like_TI.device).manual_seed(self.seed)
        return _factor(like_TI, width, self.rate, generator)


@dataclass(frozen=True)
class PartedRates:
    """The dropout of a batch in which several adapters have tokens."""

    parts: Sequence[tuple[OwnRate, int]]
    """Of each adapter, and how many tokens it has."""
    place_T: Tensor
    """Where each token lies when the adapters' tokens follow one another."""

    def again(self) -> "PartedRates":
        """For second masks of the same tokens."""
        return PartedRates([(rate.again(), tokens) for rate, tokens in self.parts], self.place_T)

    def factor(self, like_TI: Tensor, width: int) -> Tensor:
        """See `draw`."""
        factors, first = [], 0
        for rate, tokens in self.parts:
            own_tI = like_TI[first : first + tokens]
            factor_tI = rate.factor(own_tI, width)
            factors.append(own_tI.new_ones(tokens, width) if factor_tI is None else factor_tI)
            first += tokens
        return torch.cat(factors)[self.place_T]


Rate = float | OwnRate | PartedRates
"""The share of features that is dropped: of all tokens, or of each adapter's."""


def dropped(input_TI: Tensor, rate: Rate) -> Tensor:
    """The input of all A matrices that read it, under one mask. A GPU draws and applies it in one
    kernel, and keeps a byte of each number for the way back."""
    if input_TI.device.type != "cpu" and isinstance(rate, float):
        return functional.dropout(input_TI, rate) if rate else input_TI
    factor_TI = draw(input_TI, input_TI.shape[1], rate)
    return input_TI if factor_TI is None else input_TI * factor_TI


def draw(like_TI: Tensor, width: int, rate: Rate) -> Tensor | None:
    """A factor for every feature, [T, width]: 0, or 1 / (1 - rate) where it stays; None if all do.

    On a CPU sixteen random bits decide on a feature: that takes a fourth of the time of torch's own
    dropout, which takes longer than a matmul of the layer. The rate is then rounded to a multiple
    of 2^-16.
    """
    one = OwnRate(rate) if isinstance(rate, float) else rate
    return one.factor(like_TI, width)


def _factor(
    like_TI: Tensor, width: int, rate: float, generator: torch.Generator | None
) -> Tensor | None:
    tokens, device = len(like_TI), like_TI.device
    if device.type != "cpu":  # two kernels, where the bits would take six
        kept_TI = like_TI.new_empty(tokens, width)
        return kept_TI.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
    level = round(rate * LEVELS)
    if not level:
        return None
    factor_TI = _bits(tokens, width, device, generator).ge_(level - LEVELS // 2)
    return factor_TI.mul_(LEVELS / (LEVELS - level)).to(like_TI.dtype)


def _bits(
    tokens: int, width: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Uniform whole numbers from -2^15 to 2^15 - 1, [tokens, width], as float32."""
    if torch.compiler.is_compiling():
        bits = torch.randint(-LEVELS // 2, LEVELS // 2, (tokens, width), device=device)
        return bits.float()
    words = torch.empty(-(-tokens * width // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)
    return bits[: tokens * width].view(tokens, width).float()
