"""Matmuls of rows that are sorted by expert, each group with its expert's matrix.

Shapes: P rows, N experts, I and O sizes of a matrix. `end_N` are the groups' ends in the rows
(int32); the last one is P.
"""

import torch
from torch import Tensor
from torch.nn import functional

ALIGNED_BYTES = 16
"""torch's grouped_mm wants every row of a matrix to begin at a multiple of it."""


def is_aligned(*sizes: int, dtype: torch.dtype) -> bool:
    """Whether matrices with rows of these sizes can go through grouped matmuls."""
    return dtype == torch.float64 or all(
        size * dtype.itemsize % ALIGNED_BYTES == 0 for size in sizes
    )


def grouped_mm(rows_PI: Tensor, weight_NIO: Tensor, end_N: Tensor) -> Tensor:
    """rows[p] @ weight[expert of p]: [P, O]."""
    if rows_PI.dtype != torch.float64:
        return functional.grouped_mm(rows_PI, weight_NIO, offs=end_N)
    # torch has no grouped matmul in float64, which is for proofs, where memory is no matter.
    return torch.bmm(rows_PI.unsqueeze(1), weight_NIO[_expert(end_N, rows_PI)]).squeeze(1)


def grouped_outer(left_PI: Tensor, right_PO: Tensor, end_N: Tensor) -> Tensor:
    """left^T @ right of each group: [N, I, O]; zero where a group is empty."""
    if left_PI.dtype != torch.float64:
        return functional.grouped_mm(left_PI.T, right_PO, offs=end_N)
    outer_PIO = left_PI.unsqueeze(2) * right_PO.unsqueeze(1)
    zero_NIO = outer_PIO.new_zeros(len(end_N), *outer_PIO.shape[1:])
    return zero_NIO.index_add(0, _expert(end_N, left_PI), outer_PIO)


def _expert(end_N: Tensor, rows_P: Tensor) -> Tensor:
    place_P = torch.arange(len(rows_P), device=end_N.device, dtype=end_N.dtype)
    return torch.searchsorted(end_N, place_P, right=True)
