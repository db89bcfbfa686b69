"""Block experts for a handful of tokens without gradients: a decoding step.

The sums are the plain mixture's; what counts here is the number of operations, each of which costs
more than its arithmetic.
Shapes: T tokens, K slots, N experts, R rank, S = N * R, I inner linears, D model width, F the
block's inner width, O the size of an inner linear's output.
"""

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.assignments import ExpertAssignments
from workers.layers.feed_forward import FeedForward
from workers.layers.inference.frozen_linear import frozen_product
from workers.layers.inference.prepared import Prepared
from workers.layers.inference.row_sums import row_sums
from workers.layers.mixture.swiglu import combine

GATHERED_SHARE = 3
"""Rows of a matrix for each that is needed, from which on copying these is cheaper than a product
with all (measured as tests/benchmarks/decode.py does, with eight adapters)."""


def decode_tokens(
    block: FeedForward, made: Prepared, hidden_TD: Tensor, assignments: ExpertAssignments
) -> Tensor:
    """The block with its experts, up to what it does behind its outer linear: [T, D]."""
    tokens, slots = assignments.expert_TK.shape
    inner, rank = made.inner, made.rank
    own_IPR = made.place_INR.index_select(1, assignments.expert_TK.flatten())
    row_ITKR = own_IPR.view(inner, tokens, slots, rank)
    rank_space_ITX = _products(made.inner_A_SD, row_ITKR.flatten(2), hidden_TD)
    update_BO = row_sums(
        row_ITKR, rank_space_ITX, made.inner_B_SO, made.start_B[: inner * tokens * slots]
    )
    update_ITKO = update_BO.view(inner, tokens, slots, -1)
    frozen = (frozen_product(linear, hidden_TD).unsqueeze(1) for linear in block.inner.values())
    hidden_TKF = combine(block, [update_ITKO[i].add_(one) for i, one in enumerate(frozen)])
    gate_TK = assignments.gate_TK.to(hidden_TD.dtype)
    mix_TF = torch.bmm(gate_TK.unsqueeze(1), hidden_TKF).squeeze(1)
    output_TD = frozen_product(block.outer[1], mix_TF)
    if made.outer_A_SF is None or made.outer_B_SD is None:
        return output_TD
    row_TKR = row_ITKR[0]
    outer_TKR = _products(made.outer_A_SF, row_TKR, hidden_TKF).mul_(gate_TK.unsqueeze(2))
    return output_TD.add_(
        row_sums(row_TKR, outer_TKR, made.outer_B_SD, made.start_B[: tokens * slots : slots])
    )


def _products(matrix_SI: Tensor, row: Tensor, input_I: Tensor) -> Tensor:
    """Each input [..., I] times its own rows [..., X] of a matrix: [..., X]. Where these are few of
    many, as with several adapters, they are copied, and the others not even read."""
    if row.numel() * GATHERED_SHARE < len(matrix_SI):
        own_XI = matrix_SI.index_select(0, row.flatten()).view(*row.shape, -1)
        return (own_XI @ input_I.unsqueeze(-1)).squeeze(-1)
    all_S = functional.linear(input_I, matrix_SI)
    return all_S.expand(*row.shape[:-1], -1).gather(-1, row)
