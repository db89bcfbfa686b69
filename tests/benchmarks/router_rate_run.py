"""How fast a router should learn on real rows: validation loss by `router_lr_ratio`, over seeds.

`router_rate.py` with whole runs of a specification that a run has left, such as one of the demo's
trials; whatever that says, its adapter is the one named here. Runs of one seed differ in the
router's rate alone.

    python tests/benchmarks/router_rate_run.py runs/studies/smart-home/trials/T000/train.json

With its own sizes it also writes its section of RESULTS.md.
"""

import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import harness
from results import machine, table, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.base import override
from workers.config.train import TrainSpec
from workers.run.record import RunPlan
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun

RATIOS = (0.0, 0.1, 1.0)


@dataclass(frozen=True)
class Sizes:
    """What is trained."""

    steps: int = 40
    seeds: int = 3
    num_experts: int = 8
    rank: int = 8
    lr: float = 2e-3
    threads: int = 2
    experts: str = "block"
    """Or linear."""


def validation_loss(spec: TrainSpec, inputs: Inputs) -> float:
    """At the end of a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(spec, RunPlan(Path(folder), "router_rate_run"), inputs=inputs)
        try:
            while not run.done:
                run.advance()
        finally:
            run.close()
    return float(run.metrics["validation"]["loss"])


def run(spec: TrainSpec, sizes: Sizes, out: TextIO) -> dict[str, Any]:
    """Losses by ratio, one a seed."""
    changes = {
        "adapter.experts": sizes.experts,
        "adapter.num_experts": sizes.num_experts,
        "adapter.rank": sizes.rank,
        "optimizer.lr": sizes.lr,
        "optimizer.steps": sizes.steps,
        "evaluation.every": sizes.steps,
        "parallel.threads": sizes.threads,
    }
    spec = override(spec, changes, "router_rate_run")
    inputs = Inputs.load(spec)
    losses: dict[str, list[float]] = {}
    for ratio in RATIOS:
        each = [{"seed": seed, "optimizer.router_lr_ratio": ratio} for seed in range(sizes.seeds)]
        asked = (override(spec, one, "router_rate_run") for one in each)
        losses[str(ratio)] = [round(validation_loss(one, inputs), 4) for one in asked]
        print(f"{ratio}:", *losses[str(ratio)], file=out, flush=True)
    return {"validation_loss": losses, "sizes": asdict(sizes)}


def section(result: Mapping[str, Any]) -> str:
    """For RESULTS.md."""
    sizes = "; ".join(f"{name} {size}" for name, size in result["sizes"].items())
    seeds = [f"seed {seed}" for seed in range(result["sizes"]["seeds"])]
    rows = [
        [ratio, *(f"{one:.3f}" for one in (statistics.mean(found), *found))]
        for ratio, found in result["validation_loss"].items()
    ]
    shown = table(["router_lr_ratio", "mean", *seeds], rows)
    return f"{machine()}\n\nA trial of the demo; {sizes}\n\nValidation loss.\n\n{shown}"


def main() -> None:
    """Parse the arguments, print the figures, and end with one line of JSON."""
    made = harness.parser(__doc__, Sizes())
    made.add_argument("spec", type=Path, help="train.json of a run")
    options = vars(made.parse_args())
    path, file = options.pop("json"), options.pop("spec")
    sizes = Sizes(**options)
    spec = TrainSpec.model_validate_json(file.read_text())
    result = run(spec, sizes, harness.output(path))
    if sizes == Sizes():
        write_section("router_rate_run.py", section(result))
    harness.finish(result, path)


if __name__ == "__main__":
    main()
