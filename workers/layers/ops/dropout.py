"""Dropout on the inputs of A matrices: one mask for all the experts and projections that read them.

Shapes: T tokens, I features.
"""

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
