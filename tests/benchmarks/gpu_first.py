"""The first minutes on a GPU: each stage prints lines of JSON, and outlives the others' failures.

`docs/performance.md` says what each figure decides. Without a GPU it runs at tiny sizes, to show
that it runs.

    python tests/benchmarks/gpu_first.py [resume] [kernels] [step] [decode] [pack] [--json PATH|-]

Shapes: T tokens, F feed-forward width, E experts, K top-k, R rank.
"""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import harness
import torch
from gpu_model import DTYPE, GPU, llama, synchronize, timed
from gpu_pack import pack
from gpu_step import decode, step

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.config.train import OptimizerSpec
from workers.injection.inject import inject
from workers.layers.kernels.mixture import Dropped, fused_mixture
from workers.layers.kernels.support import supports
from workers.parallel.update import Replicated

DEVICE = torch.device("cuda" if GPU else "cpu")


@dataclass(frozen=True)
class _NoSizes:
    """Sizes follow from the device."""


@dataclass(frozen=True)
class Case:
    """Sizes of one call of the kernels."""

    T: int = 8192
    E: int = 8
    K: int = 2
    R: int = 16
    dropout: float = 0.05


CASES = [
    Case(),
    Case(dropout=0.0),
    Case(R=8),
    Case(E=32),
    Case(E=64),
    Case(K=4),
    Case(K=8),
    Case(T=1024),
    Case(T=128, dropout=0.0),
]


def resume() -> Iterator[dict[str, Any]]:
    """A step, its state through a file, a step: fails where a part lies on another device."""
    adapter = inject(llama(layers=1, tiny=True), AdapterSpec(num_experts=4, rank=4))

    def one(update: Replicated) -> None:
        for parameter in adapter.parameters():
            parameter.grad = torch.ones_like(parameter)
        update.apply()
        synchronize()

    first, file = Replicated(adapter, OptimizerSpec()), io.BytesIO()
    one(first)
    torch.save(dict(first.whole_state()), file)
    file.seek(0)
    second = Replicated(adapter, OptimizerSpec())
    second.load_whole_state(torch.load(file, map_location="cpu", weights_only=True))
    one(second)
    yield {"ok": True}


def kernels() -> Iterator[dict[str, Any]]:
    """Each kernel alone against the bytes that it must move, for the block of an 8B model."""
    width = 14336 if GPU else 32
    probe = torch.zeros(1, width, device=DEVICE, dtype=DTYPE)
    if not supports(probe, 8, 16, 2, "silu"):
        yield {"skipped": "no GPU, no Triton, or a GPU older than Ampere"}
        return
    for case in CASES if GPU else [Case(T=4, R=4)]:
        yield {**vars(case), **_kernel_times(case, width)}


def _kernel_times(case: Case, width: int) -> dict[str, float]:
    """Milliseconds of the forward and of both backward kernels, and the GB/s of each."""
    T, E, K, R = case.T, case.E, case.K, case.R

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=DTYPE, requires_grad=True)

    expert_TK = torch.rand(T, E, device=DEVICE).topk(K).indices
    inner, rank_space = (drawn(T, width), drawn(T, width)), (drawn(T, K, R), drawn(T, K, R))
    matrices = (drawn(E, width, R), drawn(E, width, R))
    outer, gate_TK = drawn(E, R, width), torch.rand(T, K, device=DEVICE, requires_grad=True)
    keep = Dropped.draw(case.dropout) if case.dropout else None

    def forward() -> tuple[torch.Tensor, ...]:
        made = fused_mixture(inner, rank_space, expert_TK, gate_TK, matrices, outer, "silu", keep)
        return tuple(one for one in made if one is not None)

    output = forward()
    arriving = [torch.randn_like(one) for one in output]

    def backward(leaves: tuple[torch.Tensor, ...]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(output, leaves, arriving, retain_graph=True)

    seconds = {
        "forward": timed(forward),
        "backward_tokens": timed(backward((*inner, *rank_space, gate_TK))),
        "backward_experts": timed(backward((*matrices, outer))),
    }
    moved = {"forward": 3, "backward_tokens": 5, "backward_experts": 3}  # of [T, F]
    gigabytes = T * width * DTYPE.itemsize / 1e9
    rates = {f"{name}_GBps": moved[name] * gigabytes / taken for name, taken in seconds.items()}
    return {f"{name}_ms": 1000 * taken for name, taken in seconds.items()} | rates


STAGES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "resume": resume,
    "kernels": kernels,
    "step": step,
    "decode": decode,
    "pack": pack,
}


def main() -> None:
    """Run the stages that are named, or all."""
    parser = harness.parser(__doc__, _NoSizes())
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="all, if none is named")
    arguments = parser.parse_args()
    table = harness.output(arguments.json)
    device = torch.cuda.get_device_name() if GPU else "cpu"
    result: dict[str, Any] = {"torch": torch.__version__, "device": device}
    for name in arguments.stages or STAGES:
        begin, lines = perf_counter(), result.setdefault(name, [])
        try:
            for line in STAGES[name]():
                lines.append(line)
                print(name, line, file=table, flush=True)
        except Exception as error:  # the other stages still have something to say
            lines.append({"error": f"{type(error).__name__}: {error}"[:300]})
            print(name, lines[-1], file=table, flush=True)
        print(f"{name}: {perf_counter() - begin:.1f} s", file=table, flush=True)
    harness.finish(result, arguments.json)


if __name__ == "__main__":
    main()
