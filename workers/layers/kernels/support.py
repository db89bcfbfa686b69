"""Where the fused kernels run: what is asked before each use, and proved once for a device."""

import importlib.util
import warnings
from functools import cache

import torch
from torch import Tensor

from workers.layers.kernels.launch import interpreted
from workers.layers.kernels.mixture import fused_mixture
from workers.layers.kernels.visits import is_little_work

MAX_TOP_K = 8
MAX_RANK = 64
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def supports(inner_TF: Tensor, experts: int, rank: int, top_k: int, activation: str | None) -> bool:
    """Whether `fused_mixture` is to take frozen outputs like `inner_TF`, updates of `rank` and
    `top_k` slots: where Triton is installed and works, on a GPU (or in Triton's interpreter), where
    tiles meet few experts, and not while torch.compile traces, which the eager path is for.
    `activation`: from `activation_name`."""
    return (
        activation is not None
        and 1 <= rank <= MAX_RANK
        and 1 <= top_k <= MAX_TOP_K
        and inner_TF.dtype in DTYPES
        and len(inner_TF) * top_k * MAX_RANK < 2**31  # Rank space is addressed in 32 bits.
        and not torch.compiler.is_compiling()
        and is_little_work(inner_TF, experts, rank, top_k)
        and _has_triton()
        and (_capable(inner_TF.device) if inner_TF.is_cuda else interpreted())
        and launches(inner_TF.device)
    )


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _capable(device: torch.device) -> bool:
    """From Ampere on: bfloat16 on tensor cores."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def launches(device: torch.device) -> bool:
    """Whether a kernel compiles, starts and ends on this device; if not, a warning says why.

    Triton compiles where it first runs, and needs a C compiler and a driver that is new enough:
    without them training would end in its first step, where the eager path goes on.
    """
    one = torch.ones(1, 32, device=device, dtype=torch.float32)
    expert_TK = torch.zeros(1, 1, device=device, dtype=torch.int64)
    try:
        with torch.no_grad():
            mix_TF, _ = fused_mixture((one,), (None,), expert_TK, one[:, :1], (None,), None, "relu")
            mix_TF.tolist()  # waits for the kernel, once
    except Exception as error:  # Triton has no base class for what may go wrong.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"Triton cannot run on {device} ({reason}); block experts take the eager path, which "
            "computes the same in more time and memory",
            stacklevel=2,
        )
        return False
    return True
