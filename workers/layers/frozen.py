"""A frozen linear in inference: for a handful of rows on a CPU, in the quicker order.

MKL takes longer for x W^T than for (W x^T)^T where x has a dozen rows
(tests/benchmarks/product_order.py). Shapes: T rows, I and O the linear's input and output size.
"""

import torch
from torch import Tensor, nn

ROWS = range(6, 65)
"""For so many the other order is quicker."""


def frozen_product(linear: nn.Module, rows_TI: Tensor) -> Tensor:
    """linear(rows), [T, O]; equal up to rounding."""
    if not isinstance(linear, nn.Linear) or not _turns(linear, rows_TI):
        output_TO: Tensor = linear(rows_TI)
        return output_TO
    product_TO = (linear.weight @ rows_TI.T).T.contiguous()
    return product_TO if linear.bias is None else product_TO.add_(linear.bias)


def _turns(linear: nn.Linear, rows_TI: Tensor) -> bool:
    """Whether the other order is quicker, and nobody has changed what the linear does."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(rows_TI) not in ROWS:
        return False
    # Quantised and sharded weights are tensors of their own types.
    plain = type(linear.weight) in {nn.Parameter, Tensor} and rows_TI.dim() == 2
    return (
        plain
        and rows_TI.dtype == linear.weight.dtype == torch.float32
        and rows_TI.device.type == "cpu"
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and type(linear).forward is nn.Linear.forward
        and "forward" not in vars(linear)
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )
