"""A frozen linear for a handful of rows on a CPU: (W x^T)^T over x W^T.

    python tests/benchmarks/product_order.py [--json PATH|-]

The linears take turns, as in a real step, so that their weights come from memory; one thread,
process CPU time, medians. Where the ratio is below 1
workers/layers/inference/frozen_linear.py turns the product.
Shapes: T rows, I and O the linear's input and output size.
"""

import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TextIO

import harness
import torch
from results import machine, table, write_section
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.layers.inference.frozen_linear import frozen_product


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    width_in: int = 576
    width_out: int = 1536
    linears: int = 30
    rounds: int = 60


@torch.no_grad()
def measure(sizes: Sizes, rows: list[int], out: TextIO) -> dict[int, tuple[float, float]]:
    """Median milliseconds of x W^T and of our order, by number of rows."""
    linears = [nn.Linear(sizes.width_in, sizes.width_out, bias=False) for _ in range(sizes.linears)]
    taken = {}
    for count in rows:
        rows_TI = torch.randn(count, sizes.width_in)
        times: dict[bool, list[float]] = defaultdict(list)
        next_linear = cycle(linears)
        for _ in range(sizes.rounds):
            for ours in (False, True):
                turn = partial(_product, next(next_linear), rows_TI, ours)
                times[ours].append(harness.milliseconds(turn))
        taken[count] = statistics.median(times[False]), statistics.median(times[True])
        print(f"{count:4} rows {taken[count][0]:8.3f} ms {taken[count][1]:8.3f} ms", file=out)
    return taken


def _product(linear: nn.Linear, rows_TI: Tensor, ours: bool) -> Tensor:
    output_TO: Tensor = frozen_product(linear, rows_TI) if ours else linear(rows_TI)
    return output_TO


def main() -> None:
    """Parse the arguments, print the table, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 6, 8, 16, 32, 64, 128, 200])
    parser.add_argument("--results", type=Path, metavar="PATH", help="write a section there")
    options = vars(parser.parse_args())
    path, rows, results = (options.pop(name) for name in ("json", "rows", "results"))
    torch.set_num_threads(1)
    sizes = Sizes(**options)
    taken = measure(sizes, rows, harness.output(path))
    if results is not None:
        lines = [[f"{n}", f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}"] for n, (a, b) in taken.items()]
        text = table(["rows", "torch's ms", "ours ms", "ratio"], lines)
        write_section("product_order.py", f"{machine()}\n\n{text}", results)
    ratios = {str(n): round(ours / theirs, 3) for n, (theirs, ours) in taken.items()}
    harness.finish({"ours_over_torch": ratios, "sizes": asdict(sizes)}, path)


if __name__ == "__main__":
    main()
