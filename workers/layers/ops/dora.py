"""DoRA: an expert's output features have a trained magnitude of their own (arXiv 2402.09353).

    W_e = m_e * (W + s B_e A_e) / |W + s B_e A_e|         |.|: norm of each row (output feature)

Defined where an expert's own output is at hand: inner linears of a block, and linear experts. Block
experts run the outer linear once for the sum of their h_e, which has one magnitude at most: there
it is refused. As in the paper (section 4.3) the norm carries no gradient.
Shapes: N experts, R rank, I and O the linear's input and output size.
"""

import torch
from torch import Tensor, nn

from workers.config.base import InputError
from workers.layers.feed_forward import linear_sizes


def weight_OI(linear: nn.Module) -> Tensor:  # noqa: N802
    """The frozen weight; transformers' Conv1D keeps it transposed."""
    weight = linear.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        raise InputError("use_dora: needs the base's weights as numbers, but they are quantised")
    sizes = linear_sizes(linear)
    return weight if sizes is None or isinstance(linear, nn.Linear) else weight.T


@torch.no_grad()
def row_norms(linear: nn.Module) -> Tensor:
    """|W| of every output feature, [O], float32."""
    return weight_OI(linear).float().square().sum(1).sqrt()


def factor(
    magnitude_NO: Tensor, linear: nn.Module, lora_A_NRI: Tensor, lora_B_NOR: Tensor, scale: float
) -> Tensor:
    """m / |W + s B A| of every expert and output feature, [N, O]."""
    with torch.no_grad():
        weight = weight_OI(linear).to(lora_A_NRI.dtype)
        # |W + s B A|^2 = |W|^2 + 2 s <W, B A> + s^2 |B A|^2, without any [N, O, I].
        cross_NOR = torch.einsum("oi,nri->nor", weight, lora_A_NRI.expand(len(lora_B_NOR), -1, -1))
        gram_NRR = (lora_A_NRI @ lora_A_NRI.transpose(1, 2)).expand(len(lora_B_NOR), -1, -1)
        squared_NO = (
            weight.square().sum(1)
            + 2 * scale * (lora_B_NOR * cross_NOR).sum(2)
            + scale**2 * (lora_B_NOR @ gram_NRR * lora_B_NOR).sum(2)
        )
        norm_NO = squared_NO.clamp(min=torch.finfo(squared_NO.dtype).tiny).sqrt()
    return magnitude_NO / norm_NO
