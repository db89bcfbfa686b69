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
    # Hooks first: with ZeRO-3 they bring the weight, and to read it before them is to ask for it
    # anew, which every worker must do or none.
    if not _is_plain(linear) or rows_TI.dim() != 2 or rows_TI.device.type != "cpu":
        return False
    weight_OI = linear.weight  # Quantised and sharded ones are tensors of their own types.
    return (
        type(weight_OI) in {nn.Parameter, Tensor}
        and rows_TI.dtype == weight_OI.dtype == torch.float32
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    )


def _is_plain(linear: nn.Linear) -> bool:
    return (
        type(linear).forward is nn.Linear.forward
        and "forward" not in vars(linear)
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )
