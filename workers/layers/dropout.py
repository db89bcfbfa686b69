"""Dropout on the inputs of A matrices: one mask for all the experts and projections that read them.

Shapes: T tokens, I features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 2**16


class Kept(NamedTuple):
    """What dropout leaves of an input."""

    mask_TI: Tensor
    """True where a feature stays."""
    gain: float | Tensor
    """1 / (1 - rate), [T] where tokens differ: callers multiply the small rank space by it."""

    def drop(self, input_TI: Tensor) -> Tensor:
        """The input without what is dropped, not yet multiplied by the gain."""
        return input_TI * self.mask_TI

    def gained(self, rank_space_TKR: Tensor) -> Tensor:
        """The rank space of a dropped input, with the gain."""
        gain = self.gain
        return rank_space_TKR * (gain.view(-1, 1, 1) if isinstance(gain, Tensor) else gain)


def draw(like_TI: Tensor, width: int, rate: float | Tensor) -> Kept | None:
    """Draw a mask [T, width]; None if nothing is dropped. A tensor `rate` [T] is each token's.

    Sixteen random bits decide on a feature: on a CPU a quarter of the time of torch's own dropout,
    which takes longer than a matmul of the layer. The rate is rounded to a multiple of 2^-16.
    """
    tokens, device = len(like_TI), like_TI.device
    if not isinstance(rate, Tensor):
        level = round(rate * LEVELS)
        if not level:
            return None
        mask_TI = _bits(tokens, width, device) >= level - LEVELS // 2
        return Kept(mask_TI, LEVELS / (LEVELS - level))
    level_T = (rate * LEVELS).round()
    mask_TI = _bits(tokens, width, device) >= level_T.unsqueeze(1) - LEVELS // 2
    return Kept(mask_TI, (LEVELS / (LEVELS - level_T)).to(like_TI.dtype))


def _bits(tokens: int, width: int, device: torch.device) -> Tensor:
    """Uniform numbers from -2^15 to 2^15 - 1, [tokens, width]."""
    if torch.compiler.is_compiling():
        return torch.randint(-LEVELS // 2, LEVELS // 2, (tokens, width), device=device)
    words = torch.empty(-(-tokens * width // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None).view(torch.int16)
    return bits[: tokens * width].view(tokens, width)
