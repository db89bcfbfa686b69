"""The fused kernels compiled for a GPU that need not be there: what the interpreter cannot check.

`test_mixture.py` runs this file in a process of its own, without Triton's interpreter.
"""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from workers.layers.kernels.backward_kernels import backward_experts_kernel, backward_tokens_kernel
from workers.layers.kernels.forward_kernels import forward_kernel
from workers.layers.kernels.launch import Given, KernelSizes, Tile, padded

pytestmark = pytest.mark.usefixtures("processes")  # Triton's compiler starts the assembler

AMPERE_SHARED = 99 * 1024
"""Shared memory of a program on the GPUs that have the least of it (8.6, 8.9)."""
BF16 = KernelSizes("silu", (0.1, 1), 4096, 14336, 2, 8, 16, 16, torch.bfloat16)
INTEGERS = {"weight_ptr": "*fp32", "share_ptr": "*fp32"} | dict.fromkeys(
    ("expert_ptr", "order_ptr", "pair_ptr", "start_ptr"), "*i64"
)
KERNELS = {
    forward_kernel: lambda job: job.token_tile(job.top_k * padded(job.rank_out)),
    backward_tokens_kernel: lambda job: job.token_tile(2 * job.top_k * padded(job.rank)),
    backward_experts_kernel: lambda job: job.pair_tile(),
}


def compiled(kernel: Any, job: KernelSizes, tile: Tile, capability: int) -> Any:
    """As a launch would compile it, every projection adapted."""
    own = "*bf16" if job.dtype is torch.bfloat16 else "*fp32"
    empty = torch.empty(0, job.width, dtype=job.dtype)
    values = job.arguments(Given(*[empty] * 8))
    values |= {"C": 1 + 2 * job.rank, "BT": tile.rows, "BP": tile.rows, "BF": tile.features}
    signature: dict[str, str] = {}
    constants, aligned = {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[(place,)] = "constexpr", values[name]
        elif name.endswith("_ptr"):
            signature[name] = INTEGERS.get(name, own)
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "drop" else "i32"
            if isinstance(values.get(name), int) and values[name] % 16 == 0:
                aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"enable_fp_fusion": values["enable_fp_fusion"]}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.fn.__name__)
def test_compiles_for_hopper_onto_its_tensor_cores(kernel: Any) -> None:
    made = compiled(kernel, BF16, KERNELS[kernel](BF16), 90)
    assert "wgmma.mma_async" in made.asm["ptx"]
    assert made.metadata.shared <= AMPERE_SHARED


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.fn.__name__)
def test_rank_8_is_read_in_wide_loads_as_rank_16_is(kernel: Any) -> None:
    """Its sizes are constants: as arguments they left 28 to 80 loads of two bytes, and spills."""
    job = replace(BF16, rank=8, rank_out=8)
    made = compiled(kernel, job, KERNELS[kernel](job), 90)
    assert re.search(r"ld\.global\S*\.v4\.b32", made.asm["ptx"])
    assert not re.search(r"ld\.global\S*\.b16", made.asm["ptx"])


def test_compiles_for_ampere_at_the_largest_rank() -> None:
    job = replace(BF16, rank=64, rank_out=64)
    made = compiled(backward_experts_kernel, job, job.pair_tile(), 86)
    assert "mma.sync" in made.asm["ptx"]
    assert made.metadata.shared <= AMPERE_SHARED
