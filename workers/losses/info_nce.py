"""Supervised InfoNCE over N vectors in classes, in a few passes over one N x N buffer.

Shapes: N vectors, R rank, S = R + 1, E classes.

    loss_i = logsumexp_{j != i}(u_i u_j / t) - mean over positives p of u_i u_p / t

With S_c the sum of a class's unit vectors, its n_c members have the positives' sum
sum_{i, p != i} u_i u_p = |S_c|^2 - sum_i |u_i|^2: no N x N mask of positives is needed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_SPAN = 80
"""Similarities reach from -1 / t to 1 / t. Below this span exp(s - 1 / t) is no zero in float32."""


def info_nce(vectors_NR: Tensor, member_NE: Tensor, temperature: float) -> Tensor:
    """Mean of the loss over the vectors that have a positive (arXiv 2004.11362), at least float32.

    `member_NE` is True where a vector is of a class. A vector of no class takes no part.
    """
    precision = torch.promote_types(vectors_NR.dtype, torch.float32)
    unit_NR = functional.normalize(vectors_NR.to(precision), dim=-1)
    member_NE = member_NE.to(precision)
    size_E = member_NE.sum(0)
    anchors_E = size_E * (size_E > 1)
    # Of a class: the weight of one anchor in the mean, and of one pair of an anchor.
    anchor_E = (size_E > 1) / anchors_E.sum().clamp(min=1)
    pair_E = anchor_E / (size_E - 1).clamp(min=1)
    sum_ER = member_NE.T @ unit_NR
    self_E = member_NE.T @ unit_NR.square().sum(-1)
    attraction = pair_E @ (sum_ER.square().sum(-1) - self_E) / temperature
    # Finite, so that a row without any other vector has no NaN, in the gradient too.
    floor_N = (1 - member_NE.sum(1)) * torch.finfo(precision).min
    repulsion: Tensor = _Repulsion.apply(unit_NR, member_NE @ anchor_E, floor_N, temperature)  # type: ignore[no-untyped-call]
    return repulsion - attraction


class _Repulsion(torch.autograd.Function):
    """sum_i w_i logsumexp_{j != i}(u_i u_j / t + floor_j).

    The weights are known before, so the forward pass turns its N x N buffer into the gradient
    [N, R] at once and lets go of it: nothing N x N waits for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, unit_NR: Tensor, weight_N: Tensor, floor_N: Tensor, temperature: float
    ) -> Tensor:
        power_NN, peak_N = _powers(unit_NR, floor_N, temperature)
        row_NS = power_NN @ functional.pad(unit_NR, (0, 1), value=1.0)
        # Without any other vector a row's sum is zero, and so is its weight.
        sum_N = row_NS[:, -1].clamp(min=torch.finfo(row_NS.dtype).tiny)
        if ctx.needs_input_grad[0]:
            # The similarity's gradient is w_i p_ij, and u_i has a part in row i and in column i.
            share_N1 = (weight_N / sum_N).unsqueeze(1)
            column_RN = (share_N1 * unit_NR).T @ power_NN
            ctx.save_for_backward((share_N1 * row_NS[:, :-1] + column_RN.T) / temperature)
        return weight_N @ (peak_N + sum_N.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NR,) = ctx.saved_tensors
        return grad * gradient_NR, None, None, None


def _powers(unit_NR: Tensor, floor_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """exp(u_i u_j / t + floor_j - peak_i), zero on the diagonal, and the peaks.

    Floors and the usual peak come out of the product itself: another pass over N x N would cost as
    much as the product.
    """
    peak_N = torch.full_like(floor_N, 1 / temperature)
    left_NS = functional.pad(unit_NR / temperature, (0, 1), value=1.0)
    right_NS = torch.cat([unit_NR, (floor_N - peak_N).unsqueeze(1)], dim=1)
    power_NN = left_NS @ right_NS.T
    power_NN.fill_diagonal_(torch.finfo(power_NN.dtype).min)
    if 2 / temperature > _SPAN:
        highest_N1 = power_NN.amax(1, keepdim=True)
        power_NN.sub_(highest_N1)
        peak_N += highest_N1.squeeze(1)
    return power_NN.exp_(), peak_N
