"""Matmuls of rows that are sorted by expert, each group with its expert's matrix.

Every group meets its own expert only, so a number that is not finite stays in its group.
Shapes: P rows, N experts, I and O sizes of a matrix. `end_N` are the groups' ends in the rows
(int32); the last one is P.
"""

from collections.abc import Iterator

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
    if _is_known(*weight_NIO.shape[1:], dtype=rows_PI.dtype):
        return functional.grouped_mm(rows_PI, weight_NIO, offs=end_N)
    return torch.cat([rows_PI[own] @ weight_NIO[n] for n, own in enumerate(_groups(end_N))])


def grouped_outer(left_PI: Tensor, right_PO: Tensor, end_N: Tensor) -> Tensor:
    """left^T @ right of each group: [N, I, O]; zero where a group is empty."""
    if _is_known(left_PI.shape[1], right_PO.shape[1], dtype=left_PI.dtype):
        return functional.grouped_mm(left_PI.T, right_PO, offs=end_N)
    return torch.stack([left_PI[own].T @ right_PO[own] for own in _groups(end_N)])


def _is_known(*sizes: int, dtype: torch.dtype) -> bool:
    """Whether torch has a grouped matmul for it: not in float64, which is for proofs."""
    return dtype != torch.float64 and is_aligned(*sizes, dtype=dtype)


def _groups(end_N: Tensor) -> Iterator[slice]:
    """Each group's rows; a GPU is waited for."""
    ends = end_N.tolist()
    return map(slice, [0, *ends], ends)
