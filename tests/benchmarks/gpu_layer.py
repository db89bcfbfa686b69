"""Forward + backward of one adapted feed-forward block on a GPU, in bfloat16.

The fused kernels against the eager path of the same layer, the frozen block alone, plain LoRA with
as many trained weights (PEFT), and the plain loop over experts. They take turns; times are medians
between CUDA events. What the kernels compute is compared with float64 on fresh random data first.

    python tests/benchmarks/gpu_layer.py [--json PATH|-]

Shapes: T tokens, D width, F feed-forward width, E experts, K top-k, R rank.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import harness
import torch
from layer_step import ExpertLoop, Sizes, contestants
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.injection.wrapper import AdaptedModule
from workers.layers.experts import BlockExperts
from workers.layers.kernels.mixture import fused_mixture
from workers.layers.kernels.support import supports

SIZES = Sizes(width=4096, feed_forward=14336, rank=16, top_k=2, rounds=40)
WARM_UP = 8
ERROR_TOKENS = 200
Step = Callable[[Tensor], Tensor]


def skip_reason(sizes: Sizes) -> str | None:
    """Why nothing can be timed here."""
    if not torch.cuda.is_available():
        return "no CUDA GPU"
    probe_TF = torch.zeros(1, 1, device="cuda", dtype=torch.bfloat16)
    if not supports(probe_TF, 1, sizes.rank, sizes.top_k, "silu"):
        return "no Triton, a GPU older than Ampere, or sizes that the kernels do not take"
    return None


def largest_error(sizes: Sizes, experts: int, dtype: torch.dtype) -> float:
    """Largest relative error (norms) of the kernels' outputs and gradients against float64."""
    T, F, R, K = ERROR_TOKENS, sizes.feed_forward, sizes.rank, sizes.top_k
    expert_TK = torch.rand(T, experts, device="cuda").topk(K).indices
    shapes = [(T, F)] * 2 + [(T, K, R)] * 2 + [(experts, F, R)] * 2 + [(experts, R, F)]
    drawn = [torch.randn(shape, device="cuda") for shape in shapes]
    drawn[-1] /= F**0.5  # All of size 1, and what they make: so is z_out.
    given = [
        (one / R**0.5 if one.dim() == 3 and one.shape[1] == K else one).to(dtype) for one in drawn
    ]
    given.insert(4, torch.rand(T, K, device="cuda"))
    given = [one.requires_grad_() for one in given]
    exact = [one.detach().double().requires_grad_() for one in given]
    gate, up, z_gate, z_up, weight, b_gate, b_up, a = given
    got = fused_mixture((gate, up), (z_gate, z_up), expert_TK, weight, (b_gate, b_up), a, "silu")
    want = reference(expert_TK, *exact)
    arriving = [torch.randn_like(one) for one in want]
    pairs = [*zip(got, want, strict=True)]
    grads = torch.autograd.grad(got, given, [one.to(dtype) for one in arriving])
    exact_grads = torch.autograd.grad(want, exact, [one.to(dtype).double() for one in arriving])
    pairs += zip(grads, exact_grads, strict=True)
    return max(float((one - two).detach().norm() / two.detach().norm()) for one, two in pairs)


def reference(expert_TK: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture as its definition says, expert by expert."""
    gate_TF, up_TF, z_gate, z_up, weight_TK, b_gate, b_up, a_ERF = given
    g_TKF, u_TKF = gate_TF.unsqueeze(1), up_TF.unsqueeze(1)
    chosen = [(expert_TK == expert).unsqueeze(-1) for expert in range(len(a_ERF))]
    for here_TK1, b_gate_FR, b_up_FR in zip(chosen, b_gate, b_up, strict=True):
        g_TKF = g_TKF + (z_gate * here_TK1) @ b_gate_FR.T
        u_TKF = u_TKF + (z_up * here_TK1) @ b_up_FR.T
    h_TKF = nn.functional.silu(g_TKF) * u_TKF
    z_out_TKR = sum((h_TKF * here) @ a_RF.T for here, a_RF in zip(chosen, a_ERF, strict=True))
    assert isinstance(z_out_TKR, Tensor)
    return (weight_TK.unsqueeze(-1) * h_TKF).sum(1), z_out_TKR


def layers(sizes: Sizes, num_experts: int) -> dict[str, tuple[nn.Module, Step]]:
    """Each contestant's module and its step, in bfloat16; only our own experts stay in float32."""
    built = {name: layer.cuda() for name, layer in contestants(sizes, num_experts).items()}
    adapted, loop, lora = built["block"], built["loop"], built["lora"]
    assert isinstance(adapted, AdaptedModule)
    assert isinstance(loop, ExpertLoop)
    for module in (adapted.base, loop.lora_A, loop.lora_B, lora):
        module.bfloat16()
    (experts,) = adapted.adapters.values()
    assert isinstance(experts, BlockExperts)

    def ours(fused: bool) -> Step:
        def step(hidden_TD: Tensor) -> Tensor:
            experts.fused = fused
            return adapted(hidden_TD)

        return step

    fused, eager = (adapted, ours(True)), (adapted, ours(False))
    dense, peft, each = (adapted.base, adapted.base), (lora, lora), (loop, loop)
    return {"fused": fused, "eager": eager, "dense": dense, "peft": peft, "loop": each}


def measure(sizes: Sizes, steps: dict[str, tuple[nn.Module, Step]]) -> dict[str, float]:
    """Median milliseconds of forward + backward, by contestant; fused and loop must agree."""
    shape = sizes.tokens, sizes.width
    hidden_TD = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad_TD = torch.randn_like(hidden_TD)
    with torch.no_grad():
        ours_TD, loop_TD = (steps[name][1](hidden_TD).double() for name in ("fused", "loop"))
    assert float((ours_TD - loop_TD).norm() / loop_TD.norm()) < 0.03
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(WARM_UP + sizes.rounds):
        for name, (module, step) in steps.items():
            module.zero_grad()
            hidden_TD.grad = None
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            step(hidden_TD).backward(grad_TD)
            end.record()
            end.synchronize()
            if round_ >= WARM_UP:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(taken) for name, taken in times.items()}


def run(sizes: Sizes, num_experts: int, tokens: list[int], table: TextIO) -> dict[str, object]:
    """Errors, then the times of each T; ratios keyed by T."""
    errors = {
        f"error_{name}": largest_error(sizes, num_experts, dtype)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    steps = layers(sizes, num_experts)
    taken = {}
    print(f"{'T':>6}", *(f"{name + ' ms':>10}" for name in steps), file=table)
    for count in tokens:
        taken[count] = measure(Sizes(**asdict(sizes) | {"tokens": count}), steps)
        print(f"{count:6}", *(f"{value:10.3f}" for value in taken[count].values()), file=table)

    def ratio(over: str, under: str) -> dict[str, float]:
        return {str(count): round(ms[over] / ms[under], 3) for count, ms in taken.items()}

    return {
        "fused_over_peft": ratio("fused", "peft"),
        "loop_over_fused": ratio("loop", "fused"),
        "fused_over_dense": ratio("fused", "dense"),
        "fused_over_eager": ratio("fused", "eager"),
        **errors,
        "device": torch.cuda.get_device_name(),
        "sizes": asdict(sizes) | {"tokens": tokens, "experts": num_experts},
    }


def main() -> None:
    """Parse the arguments, print the table, and end with one line of JSON."""
    parser = harness.parser(__doc__, SIZES)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 512], help="values of T")
    options = vars(parser.parse_args())
    path, experts, tokens = (options.pop(name) for name in ("json", "experts", "lengths"))
    table, sizes = harness.output(path), Sizes(**options)
    reason = skip_reason(sizes)
    if reason:
        print(f"skipped: {reason}; nothing was timed", file=table)
    harness.finish({"skipped": reason} if reason else run(sizes, experts, tokens, table), path)


if __name__ == "__main__":
    main()
