"""A study of several shapes: each trial with a base of its own, and in packs on one base.

Both sides run the same study with `moetune tune`, on a local cluster of the machine's cores: the
same suggestions, so the same trials. Today's plain path has as many trials at once as there are
cores, in actors that keep the base from trial to trial; a pack of all trials has all cores, two
packs of half of them one core each. Wall-clock time is for a quiet machine: `make_span` from the
command to its end, `training` from the first trial's begin to the last one's end.

    python tests/benchmarks/packing.py [--models tiny,135m] [--json PATH|-]

With its own sizes it also writes its section of RESULTS.md.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import harness
from packing_step import Sizes as StepSizes
from packing_step import base_model, measure, write_rows
from results import machine, table, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.adapter import files
from workers.run.events import read_events

SPACE = {
    "adapter.num_experts": {"choice": [2, 4, 8]},
    "adapter.rank": {"choice": [4, 8]},
    "adapter.experts": {"choice": ["block", "linear"]},
}


@dataclass(frozen=True)
class Sizes:
    """What is run."""

    models: str = "tiny,135m"
    trials: int = 8
    packs: str = "4,8"
    steps: int = 12
    batch: int = 8
    words: int = 12


@dataclass(frozen=True)
class RanStudy:
    """One side's study."""

    make_span: float
    training: float
    trials: dict[str, Path]
    """Folders, by name."""


def job(model: Path, rows: Path, pack: int, sizes: Sizes) -> dict[str, Any]:
    """The study's job."""
    cores = os.cpu_count() or 1
    at_once = cores if pack == 1 else sizes.trials
    packs = sizes.trials // pack
    each = 1 if pack == 1 else max(cores // packs, 1)
    return {
        "name": f"pack{pack}",
        "train": {
            "model": {"path": str(model), "dtype": "float32"},
            "adapter": {"top_k": 1, "dropout": 0.0},
            "data": {"train": str(rows), "validation": str(rows), "max_length": 256},
            "optimizer": {
                "name": "sgd",
                "lr": 1e-2,
                "steps": sizes.steps,
                "batch_size": sizes.batch,
            },
            "evaluation": {"every": sizes.steps // 2, "generate": False, "rows_per_task": 8},
            "parallel": {"threads": each},
        },
        "search": {
            "space": SPACE,
            "trials": sizes.trials,
            "startup_trials": sizes.trials,
            "repeat": True,
            "max_concurrent": at_once,
            "pack": pack,
            "cpus_per_worker": each,
            "grace_evaluations": 2,
        },
    }


def tuned(folder: Path, content: dict[str, Any]) -> RanStudy:
    """Run it as a user does."""
    content["cluster"] = {"storage": str(folder / content["name"])}
    path = folder / f"{content['name']}.yaml"
    path.write_text(json.dumps(content))
    command = [str(Path(sys.executable).with_name("moetune")), "tune", str(path)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    study = next(Path(content["cluster"]["storage"]).glob("studies/*"))
    trials = {one.name: one for one in sorted((study / "trials").glob("T*"))}
    told = [event for one in trials.values() for event in read_events(one)]
    first = min(event.at for event in told if event.kind == "started")
    last = max(event.at for event in told if event.kind == "finished")
    return RanStudy(seconds, last - first, trials)


def worst_difference(one: RanStudy, other: RanStudy) -> float:
    """Of a trial's tensors, over their norms."""
    worst = 0.0
    for name, folder in one.trials.items():
        mine = files.read(folder / "adapter").tensors
        theirs = files.read(other.trials[name] / "adapter").tensors
        assert mine.keys() == theirs.keys(), f"{name} has another shape"
        for key, tensor in mine.items():
            far = (tensor - theirs[key]).norm() / tensor.norm().clamp(min=1e-12)
            worst = max(worst, far.item())
    return worst


def contest(name: str, sizes: Sizes, out: TextIO) -> dict[str, Any]:
    """Both sides on one model."""
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        model, rows = base_model(name, folder), write_rows(folder / "rows.jsonl", sizes.words)
        plain = tuned(folder, job(model, rows, 1, sizes))
        found: dict[str, Any] = {"plain": [plain.make_span, plain.training]}
        print(f"{name}: plain {plain.make_span:.1f} s ({plain.training:.1f})", file=out, flush=True)
        for pack in map(int, sizes.packs.split(",")):
            packed = tuned(folder, job(model, rows, pack, sizes))
            found[str(pack)] = {
                "make_span": plain.make_span / packed.make_span,
                "without_start_up": plain.training / packed.training,
                "worst_difference": worst_difference(plain, packed),
                "seconds": [packed.make_span, packed.training],
            }
            print(f"{name}: pack {pack} {packed.make_span:.1f} s ({packed.training:.1f})", file=out)
    return found


def run(sizes: Sizes, out: TextIO) -> dict[str, Any]:
    """Makespans, and a step alone."""
    models, packs = sizes.models.split(","), sizes.packs.split(",")
    found = {name: contest(name, sizes, out) for name in models}
    steps = {name: measure(StepSizes(model=name, threads=1, steps=4)) for name in models}
    ratios: dict[str, dict[str, dict[str, float]]] = {
        key: {name: {pack: found[name][pack][key] for pack in packs} for name in models}
        for key in ("make_span", "without_start_up")
    }
    return {
        "makespan_ratio": ratios["make_span"],
        "without_start_up": ratios["without_start_up"],
        "step_speed_ratio": {name: one["step_speed_ratio"] for name, one in steps.items()},
        "base_bytes": {name: one["base_bytes"] for name, one in steps.items()},
        "worst_difference": max(
            found[name][pack]["worst_difference"] for name in models for pack in packs
        ),
        "seconds": {
            name: {
                side: one["seconds"] if isinstance(one, dict) else one
                for side, one in found[name].items()
            }
            for name in models
        },
        "sizes": asdict(sizes),
    }


def described(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    sizes = "; ".join(f"{name} {size}" for name, size in result["sizes"].items())
    rows = [
        [
            f"{name}, pack of {pack}",
            f"{result['makespan_ratio'][name][pack]:.2f}",
            f"{result['without_start_up'][name][pack]:.2f}",
            f"{result['base_bytes'][name] / 2**20:.0f} MiB",
        ]
        for name in result["makespan_ratio"]
        for pack in result["makespan_ratio"][name]
    ]
    columns = ["study", "times as short", "without start-up", "of the base in a pack, once"]
    steps = ", ".join(f"{one:.2f} ({name})" for name, one in result["step_speed_ratio"].items())
    return "\n\n".join(
        [
            f"{machine()}\n\n{sizes}",
            table(columns, rows),
            f"A pack's step over single steps of the same rows, in one process: {steps}. Trials "
            f"differ by at most {result['worst_difference']:.1g} of a tensor's norm from those of "
            "the plain path.",
        ]
    )


def main(given: Sequence[str] | None = None) -> None:
    arguments = harness.parser(__doc__, Sizes()).parse_args(given)
    out = harness.output(arguments.json)
    values = vars(arguments)
    sizes = replace(Sizes(), **{name: values[name] for name in asdict(Sizes())})
    result = run(sizes, out)
    if sizes == Sizes():
        write_section("packing.py", described(result))
    harness.finish(result, arguments.json)


if __name__ == "__main__":
    main()
