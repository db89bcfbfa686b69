"""How fast a router should learn: validation loss by `router_lr_ratio`, over seeds.

A small Llama is taught to copy letters. Then an adapter learns as many tasks as `--tasks`: each
replaces letters by others in its own way, and a row begins with its task's token. Runs of one seed
differ in the router's rate alone, as a share of the experts' (0: left as it is drawn); all have the
same rows in the same order. The loss is of rows that no run has trained on.

    python tests/benchmarks/router_rate.py [--json PATH|-]

With its own sizes it also writes its section of RESULTS.md.
"""

import copy
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, TextIO

import harness
import torch
from contrastive import Sizes as ModelSizes
from contrastive import random_base
from results import machine, table, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.losses import LossSpec
from workers.config.model import ModelSpec
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch, collate
from workers.data.example import Example
from workers.injection.inject import inject
from workers.models.base import Base
from workers.parallel.update import Replicated
from workers.train.forward import batch_loss, target_losses
from workers.train.step import TrainStep

RATIOS = (0.0, 0.01, 0.1, 1.0)
LETTERS = 26
FIRST = 4
"""Token of the first letter."""


@dataclass(frozen=True)
class Sizes:
    """What is trained."""

    tasks: int = 4
    rows: int = 32
    length: int = 8
    steps: int = 300
    base_steps: int = 600
    held_out: int = 256
    seeds: int = 3
    layers: int = 2
    width: int = 64
    feed_forward: int = 128
    num_experts: int = 8
    rank: int = 4
    lr: float = 3e-3
    experts: str = "block"
    """Or linear."""


class Rows:
    """Rows of a seed's tasks; task 0 is copying, which the base knows."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self._draw, self._sizes = Random(seed), sizes
        orders = [self._draw.sample(range(LETTERS), LETTERS) for _ in range(sizes.tasks)]
        self._orders = [list(range(LETTERS)), *orders]

    def batch(self, rows: int, *, copying: bool = False) -> Batch:
        """Of equal parts of each task."""
        tasks = (0 if copying else 1 + row % self._sizes.tasks for row in range(rows))
        return collate([self._row(task) for task in tasks], 0)

    def _row(self, task: int) -> Example:
        letters = self._draw.choices(range(LETTERS), k=self._sizes.length)
        prompt = [FIRST + LETTERS + task, *(FIRST + one for one in letters), 1]
        return Example.of(prompt, [FIRST + self._orders[task][one] for one in letters])


def taught_base(sizes: Sizes) -> Base:
    """A small Llama that copies, whatever the task's token is."""
    shared = {name: getattr(sizes, name) for name in ("layers", "width", "feed_forward")}
    base = random_base(ModelSizes(**shared, vocabulary=FIRST + LETTERS + sizes.tasks + 1))
    optimizer = torch.optim.AdamW(base.model.parameters(), lr=3e-3)
    rows = Rows(sizes, seed=-1)
    for _ in range(sizes.base_steps):
        batch = rows.batch(sizes.rows, copying=True)
        (batch_loss(base, batch) / batch.counted).backward()
        optimizer.step()
        optimizer.zero_grad()
    base.model.requires_grad_(False)
    return base


def validation_loss(base: Base, sizes: Sizes, ratio: float, seed: int) -> float:
    """Of an adapter that was trained with the router at this share of the rate."""
    spec = TrainSpec(
        model=ModelSpec(path="random"),
        adapter=AdapterSpec.model_validate(
            {
                "experts": sizes.experts,
                "num_experts": sizes.num_experts,
                "rank": sizes.rank,
                "dropout": 0.0,
            }
        ),
        loss=LossSpec(),
        data=DataSpec(train="-", validation="-"),
        optimizer=OptimizerSpec(lr=sizes.lr, steps=sizes.steps, router_lr_ratio=ratio),
    )
    base = copy.deepcopy(base)
    adapter = inject(base.model.train(), spec.adapter, seed=seed)
    step = TrainStep(spec, base, adapter, Replicated(adapter, spec.optimizer))
    rows = Rows(sizes, seed)
    held_out = rows.batch(sizes.held_out)
    for _ in range(sizes.steps):
        step([rows.batch(sizes.rows)])
    base.model.eval()
    return float(target_losses(base, held_out).mean())


def run(sizes: Sizes, out: TextIO) -> dict[str, Any]:
    """Losses by ratio, one a seed."""
    base = taught_base(sizes)
    losses: dict[str, list[float]] = {}
    for ratio in RATIOS:
        found = [validation_loss(base, sizes, ratio, seed) for seed in range(sizes.seeds)]
        losses[str(ratio)] = [round(one, 4) for one in found]
        print(f"{ratio}:", *(f"{one:.4f}" for one in found), file=out, flush=True)
    return {"validation_loss": losses, "sizes": asdict(sizes)}


def section(result: Mapping[str, Any]) -> str:
    """For RESULTS.md."""
    losses = result["validation_loss"]
    sizes = "; ".join(f"{name} {size}" for name, size in result["sizes"].items())
    seeds = [f"seed {seed}" for seed in range(result["sizes"]["seeds"])]
    rows = [
        [ratio, *(f"{one:.3f}" for one in (statistics.mean(found), *found))]
        for ratio, found in losses.items()
    ]
    shown = table(["router_lr_ratio", "mean", *seeds], rows)
    return f"{machine()}\n\n{sizes}\n\nValidation loss.\n\n{shown}"


def main() -> None:
    """Parse the arguments, print the figures, and end with one line of JSON."""
    options = vars(harness.parser(__doc__, Sizes()).parse_args())
    path = options.pop("json")
    torch.set_num_threads(1)
    sizes = Sizes(**options)
    result = run(sizes, harness.output(path))
    if sizes == Sizes():
        write_section("router_rate.py", section(result))
    harness.finish(result, path)


if __name__ == "__main__":
    main()
