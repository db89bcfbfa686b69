"""What the output head and the loss of a step cost: in pieces, and with all logits at once.

Forward and backward pass of both, from the hidden states of a batch, a share of whose positions are
targets. Three sides take turns in one process and on one thread; times are process CPU time, ratios
the medians over rounds. Memory is the highest sum of live tensors that PyTorch's profiler sees.

- pieces: what training does (`PiecewiseHead`)
- torch: all logits, and torch's own cross-entropy
- logits: all logits, and our cross-entropy on them

    python tests/benchmarks/output_head.py [--json PATH|-] [--results PATH]
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import harness
import torch
from harness import milliseconds, peak_bytes
from results import RESULTS, machine, table, write_section
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.losses.cross_entropy import IGNORED, cross_entropy
from workers.losses.head_loss import PIECE_BYTES, PiecewiseHead, piece_tokens


@dataclass(frozen=True)
class Sizes:
    """SmolLM2-135M's head."""

    positions: int = 1024
    width: int = 576
    vocabulary: int = 49_152
    targets: int = 512
    rounds: int = 7


def sides(sizes: Sizes, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """Each gives the gradient of the hidden states."""
    torch.manual_seed(0)
    hidden_TD = torch.randn(sizes.positions, sizes.width, dtype=dtype, requires_grad=True)
    weight_VD = (0.05 * torch.randn(sizes.vocabulary, sizes.width)).to(dtype)
    place = torch.randperm(sizes.positions)[: sizes.targets].sort().values
    target_T = torch.full((sizes.positions,), IGNORED)
    target_T[place] = torch.randint(sizes.vocabulary, (sizes.targets,))

    def logits(hidden: Tensor) -> Tensor:
        return functional.linear(hidden, weight_VD)

    head = PiecewiseHead(logits, [], piece_tokens(sizes.targets, sizes.vocabulary, "cpu"))
    losses = {
        "pieces": lambda: head.loss(hidden_TD.index_select(0, place), target_T[place]),
        "torch": lambda: functional.cross_entropy(
            logits(hidden_TD), target_T, ignore_index=IGNORED, reduction="sum"
        ),
        "logits": lambda: cross_entropy(logits(hidden_TD), target_T, IGNORED),
    }

    def gradient(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(loss(), hidden_TD)[0]

    return {name: gradient(loss) for name, loss in losses.items()}


def measured(sizes: Sizes, dtype: torch.dtype) -> dict[str, Any]:
    """Of one type: medians of milliseconds, and of the others' ratios to `pieces`."""
    turns = sides(sizes, dtype)
    gradients = {name: turn() for name, turn in turns.items()}
    scale = gradients["torch"].abs().max()
    error = float((gradients["pieces"] - gradients["torch"]).abs().max() / scale)
    rounds = [
        {name: milliseconds(turn) for name, turn in turns.items()} for _ in range(sizes.rounds)
    ]
    peaks = {name: peak_bytes(turn) / 2**20 for name, turn in turns.items()}
    return {
        "ms": {name: statistics.median(one[name] for one in rounds) for name in turns},
        "time": {
            name: statistics.median(one["pieces"] / one[name] for one in rounds) for name in turns
        },
        "peak_mib": peaks,
        "peak": {name: peaks["pieces"] / peak for name, peak in peaks.items()},
        "largest_difference_of_gradients": error,
    }


def run(sizes: Sizes, out: TextIO) -> dict[str, Any]:
    """Both types, each side's figures in a line."""
    figures: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        figures[name] = found = measured(sizes, dtype)
        for side in found["ms"]:
            print(
                f"{name} {side}: {found['ms'][side]:.0f} ms, {found['peak_mib'][side]:.0f} MiB; "
                f"pieces over it {found['time'][side]:.2f} in time, {found['peak'][side]:.2f} in "
                "memory",
                file=out,
            )
    return figures | {"sizes": asdict(sizes)}


def write(sizes: Sizes, figures: dict[str, Any], path: Path) -> None:
    """Its section of RESULTS.md."""
    rows = [
        [f"{dtype}, {side}"]
        + [f"{figures[dtype][key][side]:.2f}" for key in ("time", "peak")]
        + [f"{figures[dtype]['peak_mib'][side]:.0f}"]
        for dtype in ("float32", "bfloat16")
        for side in ("pieces", "torch", "logits")
    ]
    worst = figures["float32"]["largest_difference_of_gradients"]
    described = "; ".join(f"{name} {value}" for name, value in asdict(sizes).items())
    write_section(
        "output_head.py",
        f"{machine()}\n\n{described}; pieces of {PIECE_BYTES['cpu'] // 2**20} MiB\n\n"
        "Head and loss in pieces over each side: medians, CPU time of one thread.\n\n"
        + table(["side", "time", "peak memory", "its MiB"], rows)
        + f"\n\nIn float32 gradients differ from torch's by at most {worst:.0e} of the largest.",
        path,
    )


def main() -> None:
    """Parse the arguments, print the figures, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = vars(parser.parse_args())
    path, results = options.pop("json"), options.pop("results")
    torch.set_num_threads(1)
    sizes = Sizes(**options)
    figures = run(sizes, harness.output(path))
    write(sizes, figures, results)
    harness.finish(figures, path)


if __name__ == "__main__":
    main()
