"""Training steps on compiled decoder layers against the same as they are written.

Both take turns on one random Llama with one adapter, in one process and on one thread; times are
process CPU time, so that neighbours on the machine count little. Rows are of many lengths, as in
training: each step has another one. What compiling takes comes once a run, and is told apart.

    python tests/benchmarks/compiled_step.py [--json PATH|-] [--results PATH]
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import torch
from contrastive import Sizes as ModelSizes
from contrastive import random_base, random_batch
from harness import milliseconds
from results import RESULTS, machine, table, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.model import ModelSpec
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch
from workers.injection.inject import inject
from workers.parallel.update import Replicated
from workers.train.compiled import CompiledLayers
from workers.train.step import TrainStep

KINDS = ("block", "linear")
BACKENDS = ("inductor", "aot_eager")
"""Torch's compiler, which is what a run takes, and what only traces: in a fifth of the time."""


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    rows: int = 8
    longest: int = 128
    layers: int = 4
    width: int = 576
    feed_forward: int = 1536
    vocabulary: int = 8192
    num_experts: int = 8
    rank: int = 8
    rounds: int = 8


class Turns:
    """A step of both sides on one model."""

    def __init__(self, sizes: Sizes, kind: str, backend: str) -> None:
        names = ("rows", "layers", "width", "feed_forward", "vocabulary")
        model = ModelSizes(**{name: getattr(sizes, name) for name in names}, length=sizes.longest)
        adapter_spec = AdapterSpec(
            experts=kind,
            num_experts=sizes.num_experts,
            rank=sizes.rank,
            dropout=0.05,
        )
        base = random_base(model)
        adapter = inject(base.model, adapter_spec)
        spec = TrainSpec(
            model=ModelSpec(path="random"),
            data=DataSpec(train="-", validation="-"),
            adapter=adapter_spec,
        )
        self._step = TrainStep(spec, base, adapter, Replicated(adapter, OptimizerSpec()))
        start = time.process_time()
        self._layers = CompiledLayers(base, adapter, rank_space=False, backend=backend)
        self.seconds, self.words = time.process_time() - start, self._layers.words
        draw = torch.Generator().manual_seed(0)
        shortest = max(2, sizes.longest // 4)
        lengths = torch.randint(shortest, sizes.longest + 1, (sizes.rounds + 2,), generator=draw)
        self.batches = [random_batch(model, length) for length in lengths.tolist()]

    def compiled(self, batch: Batch) -> None:
        """As a run with model.compile trains."""
        self._step([batch])

    def written(self, batch: Batch) -> None:
        """As it trains without."""
        with self._layers.as_written():
            self._step([batch])


def measured(sizes: Sizes, kind: str, backend: str) -> dict[str, Any]:
    """Medians of CPU milliseconds, and of the ratios of a round."""
    turns = Turns(sizes, kind, backend)
    sides: dict[str, Callable[[Batch], None]] = {
        "written": turns.written,
        "compiled": turns.compiled,
    }
    rounds = [
        {name: milliseconds(lambda: side(batch)) for name, side in sides.items()}  # noqa: B023
        for batch in turns.batches
    ][2:]
    return {
        "ms": {name: statistics.median(one[name] for one in rounds) for name in sides},
        "time": statistics.median(one["compiled"] / one["written"] for one in rounds),
        "compiling_seconds": turns.seconds,
        "said": turns.words,
    }


def described(sizes: Sizes, figures: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = [
        [
            kind,
            f"{found['ms']['written']:.0f}",
            f"{found['ms']['compiled']:.0f}",
            f"{found['time']:.2f}",
            f"{found['compiling_seconds']:.0f}",
        ]
        for kind, found in figures["kinds"].items()
    ]
    columns = ["experts", "as written, CPU ms", "compiled, CPU ms", "compiled / as written"]
    return "\n".join(
        [
            f"{machine()}\n",
            "; ".join(f"{name} {value}" for name, value in asdict(sizes).items()) + "\n",
            "A training step, each of another length; CPU time of one thread, in float32. What",
            f"compiling by {figures['backend']} takes of this process's own CPU time comes once a",
            "run.\n",
            table([*columns, "compiling, CPU s"], rows),
        ]
    )


def main() -> None:
    """Parse the arguments, print the figures, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    options = vars(parser.parse_args())
    path, results, asked = options.pop("json"), options.pop("results"), options.pop("kinds")
    backend = options.pop("backend")
    torch.set_num_threads(1)
    sizes, shown = Sizes(**options), harness.output(path)
    kinds = {kind: measured(sizes, kind, backend) for kind in asked}
    for kind, found in kinds.items():
        print(f"{kind}, compiled over as written: {found['time']:.2f}", file=shown)
    figures = {"kinds": kinds, "backend": backend, "sizes": asdict(sizes)}
    write_section("compiled_step.py", described(sizes, figures), results)
    harness.finish(figures, path)


if __name__ == "__main__":
    main()
