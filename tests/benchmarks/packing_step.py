"""Steps of several runs: in a pack, and each by itself, on one base in one process.

The runs are of the demo's kind and shape mix (2 to 8 experts, ranks 4 to 8, linear and block
experts, plain LoRA) and take the same rows on both sides, in turns; times are process CPU time.

    python tests/benchmarks/packing_step.py [--model tiny|135m|FOLDER] [--json PATH|-]
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import harness
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.demo.base_model import prepare
from orchestrator.demo.tiny_model import write_model
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.injection.inject import row_map
from workers.run.record import RunPlan
from workers.train.packed.pack import Pack
from workers.train.task import RunTask

MIX: tuple[dict[str, Any], ...] = (
    {"adapter.num_experts": 8, "adapter.rank": 4},
    {"adapter.num_experts": 4, "adapter.rank": 8},
    {"adapter.experts": "linear", "adapter.num_experts": 4, "adapter.rank": 4},
    {"adapter.num_experts": 2, "adapter.rank": 8, "adapter.top_k": 1},
    {"adapter.num_experts": 6, "adapter.rank": 4, "loss.contrastive_weight": 0.01},
    {"adapter.experts": "linear", "adapter.num_experts": 2, "adapter.rank": 8},
    {"adapter.num_experts": 4, "adapter.rank": 4, "adapter.routing": "top_p"},
    {"adapter.num_experts": 1, "adapter.top_k": 1, "adapter.rank": 8},
)
"""Shapes of eight trials."""
WORDS = ("switch", "lamp", "kitchen", "warm", "office", "please", "door", "light", "hall", "off")


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    model: str = "tiny"
    pack: int = 8
    steps: int = 6
    batch: int = 4
    words: int = 12
    threads: int = 2


def base_model(name: str, folder: Path) -> Path:
    """The tiny one, SmolLM2-135M, or a folder's."""
    if name == "tiny":
        return write_model(folder / "tiny")
    return prepare(folder / "smollm2") if name == "135m" else Path(name)


def write_rows(path: Path, words: int, rows: int = 64) -> Path:
    """Requests of a few words, and short answers."""
    draw = Random(0)
    lines = []
    for number in range(rows):
        said = " ".join(draw.choices(WORDS, k=draw.randint(words // 2, words)))
        target = " ".join(draw.choices(WORDS, k=4))
        lines.append(json.dumps({"task": f"t{number % 2}", "prompt": said, "target": target}))
    path.write_text("\n".join(lines) + "\n")
    return path


def mixed_specs(sizes: Sizes, folder: Path) -> list[TrainSpec]:
    """Of as many trials as the pack holds."""
    rows = str(write_rows(folder / "rows.jsonl", sizes.words))
    spec = TrainSpec.model_validate(
        {
            "model": {"path": str(base_model(sizes.model, folder)), "dtype": "float32"},
            "adapter": {"dropout": 0.0},
            "data": {"train": rows, "validation": rows, "max_length": 256},
            "optimizer": {"lr": 1e-3, "steps": 1000, "batch_size": sizes.batch},
            "evaluation": {"every": 1000, "generate": False, "samples": 0},
            "parallel": {"threads": sizes.threads},
        }
    )
    shapes = (MIX[at % len(MIX)] | {"seed": at} for at in range(sizes.pack))
    return [override(spec, one, "packing") for one in shapes]


@contextmanager
def packed(specs: list[TrainSpec], folder: Path) -> Iterator[Pack]:
    """A pack of these runs."""
    pack = Pack(len(specs))
    for at, spec in enumerate(specs):
        trial = folder / "study" / "trials" / f"T{at:03}"
        pack.join(RunTask(spec, RunPlan(trial, "packing", shared=folder / "study")))
    try:
        yield pack
    finally:
        pack.close()


def alone(pack: Pack) -> None:
    """A step of each run by itself."""
    for slot in pack._slots.values():
        run = slot.run
        rows = row_map(run.inputs.base.model)
        with slot.own_state(), rows.everywhere(run.adapter.slot):
            run.taking.took(run.train_step(run.taking.next_batches()), 0.0)


def together(pack: Pack) -> None:
    """A step of all runs in a pack."""
    assert pack.round(pack.names) == {}


def timed(pack: Pack, sizes: Sizes) -> dict[str, float]:
    """Milliseconds of a step of all runs, by side."""
    sides = {"alone": alone, "together": together}
    taken = dict.fromkeys(sides, 0.0)
    together(pack)
    for turn in range(sizes.steps):
        for side in sides if turn % 2 else reversed(sides):
            taken[side] += harness.milliseconds(lambda side=side: sides[side](pack))  # type: ignore[misc]
    return {side: spent / sizes.steps for side, spent in taken.items()}


def measure(sizes: Sizes) -> dict[str, Any]:
    """Speeds and memory."""
    torch.set_num_threads(sizes.threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        specs = mixed_specs(sizes, folder)
        pack = stack.enter_context(packed(specs, folder))
        spent = timed(pack, sizes)
        peaks = {
            "alone": harness.peak_bytes(lambda: alone(pack)),
            "together": harness.peak_bytes(lambda: together(pack)),
        }
        model = next(iter(pack._slots.values())).run.inputs.base.model
        frozen = (one for one in model.parameters() if not one.requires_grad)
        base = sum(one.numel() * one.element_size() for one in frozen)
    return {
        "step_speed_ratio": spent["alone"] / spent["together"],
        "milliseconds": spent,
        "peak_bytes": peaks,
        "base_bytes": base,
        "sizes": asdict(sizes),
    }


def main() -> None:
    arguments = harness.parser(__doc__, Sizes()).parse_args()
    table = harness.output(arguments.json)
    values: Mapping[str, Any] = vars(arguments)
    sizes = replace(Sizes(), **{name: values[name] for name in asdict(Sizes())})
    result = measure(sizes)
    print(f"a pack's step: {result['step_speed_ratio']:.2f} of single steps' speed", file=table)
    harness.finish(result, arguments.json)


if __name__ == "__main__":
    main()
