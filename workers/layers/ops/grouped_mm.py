"""Matmuls of rows that are sorted by expert, each group with its expert's matrix.

torch has a kernel for them in bfloat16 on Hopper and Blackwell (and loops on a CPU, where that
costs nothing). On any other GPU it reads on the host, at every call, where groups end. There the
host reads it once for all, or rank space, which is small, is spread over all experts' columns with
zeros in the others': more work, and no wait.
Where the host knows the ends, or there is a kernel, every group meets its own expert only, and a
number that is not finite stays in its group.
Shapes: P rows, N experts, I and O sizes of a matrix.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ALIGNED_BYTES = 16
"""torch's grouped_mm wants every row of a matrix to begin at a multiple of it."""
KERNEL_MAJORS = (9, 10)
"""Compute capabilities that torch has a kernel for (`_grouped_mm_cuda`)."""


class Groups(NamedTuple):
    """Where each expert's group ends in the rows; the last one is P."""

    end_N: Tensor
    """int32."""
    ends: Sequence[int] | None = None
    """The same as numbers, where the host knows them."""


def is_aligned(*sizes: int, dtype: torch.dtype) -> bool:
    """Whether matrices with rows of these sizes can go through grouped matmuls."""
    return dtype == torch.float64 or all(
        size * dtype.itemsize % ALIGNED_BYTES == 0 for size in sizes
    )


def waits(like: Tensor) -> bool:
    """Whether torch would make the host wait for the device of such tensors."""
    if like.device.type == "cpu":
        return False
    return like.dtype != torch.bfloat16 or (like.is_cuda and not has_kernel(like.device))


def grouped_mm(rows_PI: Tensor, weight_NIO: Tensor, groups: Groups) -> Tensor:
    """rows[p] @ weight[expert of p]: [P, O]."""
    if torch.compiler.is_compiling():
        output_PO: Tensor = _traced_mm(rows_PI, weight_NIO, groups.end_N)
        return output_PO
    sizes = weight_NIO.shape[1:]
    if not len(rows_PI):
        return rows_PI.new_zeros(0, sizes[1])
    if _is_known(rows_PI, *sizes):
        return functional.grouped_mm(rows_PI, weight_NIO, offs=groups.end_N)
    if groups.ends is not None:
        parts = enumerate(_slices(groups.ends))
        return torch.cat([rows_PI[own] @ weight_NIO[n] for n, own in parts])
    if sizes[0] <= sizes[1]:
        return _spread(rows_PI, groups.end_N) @ weight_NIO.flatten(0, 1)
    all_PNO = (rows_PI @ weight_NIO.transpose(0, 1).flatten(1)).view(len(rows_PI), -1, sizes[1])
    expert_P11 = _experts(rows_PI, groups.end_N).view(-1, 1, 1)
    return all_PNO.gather(1, expert_P11.expand(-1, 1, sizes[1])).squeeze(1)


def grouped_outer(left_PI: Tensor, right_PO: Tensor, groups: Groups) -> Tensor:
    """left^T @ right of each group: [N, I, O]; zero where a group is empty."""
    if torch.compiler.is_compiling():
        output_NIO: Tensor = _traced_outer(left_PI, right_PO, groups.end_N)
        return output_NIO
    experts, sizes = len(groups.end_N), (left_PI.shape[1], right_PO.shape[1])
    if not len(left_PI):
        return left_PI.new_zeros(experts, *sizes)
    if _is_known(left_PI, *sizes):
        return functional.grouped_mm(left_PI.T, right_PO, offs=groups.end_N)
    if groups.ends is not None:
        return torch.stack([left_PI[own].T @ right_PO[own] for own in _slices(groups.ends)])
    if sizes[0] <= sizes[1]:
        return (_spread(left_PI, groups.end_N).T @ right_PO).view(experts, *sizes)
    all_INO = (left_PI.T @ _spread(right_PO, groups.end_N)).view(sizes[0], experts, sizes[1])
    return all_INO.transpose(0, 1)


# torch.compile takes these whole: torch's own it traces in bfloat16 alone, and would want a graph
# for each of the numbers that the host knows.
@torch.library.custom_op("moetune::grouped_mm", mutates_args=())
def _traced_mm(rows_PI: Tensor, weight_NIO: Tensor, end_N: Tensor) -> Tensor:
    return grouped_mm(rows_PI, weight_NIO, _told(rows_PI, end_N))


@torch.library.custom_op("moetune::grouped_outer", mutates_args=())
def _traced_outer(left_PI: Tensor, right_PO: Tensor, end_N: Tensor) -> Tensor:
    return grouped_outer(left_PI, right_PO, _told(left_PI, end_N)).contiguous()


@_traced_mm.register_fake
def _(rows_PI: Tensor, weight_NIO: Tensor, _end_N: Tensor) -> Tensor:
    return rows_PI.new_empty(rows_PI.shape[0], weight_NIO.shape[2])


@_traced_outer.register_fake
def _(left_PI: Tensor, right_PO: Tensor, end_N: Tensor) -> Tensor:
    return left_PI.new_empty(end_N.shape[0], left_PI.shape[1], right_PO.shape[1])


def _told(like: Tensor, end_N: Tensor) -> Groups:
    asks = waits(like) or like.device.type == "cpu"
    return Groups(end_N, end_N.tolist() if asks else None)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001 -- by name
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_PO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows_PI, weight_NIO, end_N = ctx.saved_tensors
    to_rows, to_weight, _ = ctx.needs_input_grad
    grad_PO = grad_PO.contiguous()
    grad_PI = _traced_mm(grad_PO, weight_NIO.transpose(1, 2), end_N) if to_rows else None
    grad_NIO = _traced_outer(rows_PI, grad_PO, end_N) if to_weight else None
    return grad_PI, grad_NIO, None


_traced_mm.register_autograd(_backward, setup_context=_keep)


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether torch has one for this GPU, in bfloat16."""
    return not torch.version.hip and torch.cuda.get_device_capability(device)[0] in KERNEL_MAJORS


def _is_known(like: Tensor, *sizes: int) -> bool:
    """Whether torch has a grouped matmul for it that nobody waits for: not in float64, which is for
    proofs."""
    return like.dtype != torch.float64 and is_aligned(*sizes, dtype=like.dtype) and not waits(like)


def _slices(ends: Sequence[int]) -> Iterator[slice]:
    """Each group's rows."""
    return map(slice, [0, *ends], ends)


def _experts(rows_PI: Tensor, end_N: Tensor) -> Tensor:
    """Each row's expert, [P]."""
    place_P = torch.arange(len(rows_PI), dtype=end_N.dtype, device=end_N.device)
    return torch.searchsorted(end_N, place_P, right=True)


def _spread(rows_PI: Tensor, end_N: Tensor) -> Tensor:
    """Each row in its expert's columns, zeros in the others': [P, N * I]."""
    expert_N = torch.arange(len(end_N), device=end_N.device)
    own_PN = _experts(rows_PI, end_N).unsqueeze(1) == expert_N
    return rows_PI.unsqueeze(1).where(own_PN.unsqueeze(2), 0).flatten(1)
