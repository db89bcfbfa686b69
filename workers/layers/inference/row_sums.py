"""Sums of weighed rows of a matrix: reads these rows only, without a copy.

Shapes: B sums, X rows of them all, S rows of the matrix, O its columns.
"""

from torch import Tensor
from torch.nn import functional


def row_sums(row_X: Tensor, weight_X: Tensor, matrix_SO: Tensor, start_B: Tensor) -> Tensor:
    """[B, O]; each sum goes from its start to the next one's. Rows and weights of any shape."""
    row_X, weight_X = row_X.flatten(), weight_X.flatten()
    return functional.embedding_bag(
        row_X, matrix_SO, start_B, mode="sum", per_sample_weights=weight_X
    )
