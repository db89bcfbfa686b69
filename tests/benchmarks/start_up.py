"""What passes between a command and the first step of its first trial, and what it is made of.

The studies are those of packing.py, on the tiny model: trials with a base each, and in a pack.
They are watched from outside: by the lines that the command says, by the files of its trials, and
by when the cluster's first process began. Each trial takes one step, so what is left to its end is
that step and a small evaluation. Wall-clock time, for a quiet machine.

    python tests/benchmarks/start_up.py [--json PATH|-]

With its own sizes it also writes its section of RESULTS.md.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import harness
import packing
import psutil
from packing_step import base_model, write_rows
from results import machine, table, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.run.events import RunEvent, read_events

LIBRARIES = "import torch, ray, ray.tune, optuna, transformers, typer, sqlalchemy, pyarrow"
"""What a command and its processes import of others."""
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Sizes:
    """What is run."""

    trials: int = 8
    packs: str = "1,4,8"
    """1: each trial has a base of its own."""
    batch: int = 8
    words: int = 12


@dataclass(frozen=True)
class StartUp:
    """Seconds, one after another; they add up to the time of the first trial's first step."""

    command: float
    """Until the command starts its cluster: imports, and all checks of job and rows."""
    cluster: float
    """Ray's own start."""
    given: float
    """Until Ray Tune has a process for the first trial: the study in its store, the first
    suggestion, Ray's worker."""
    begun: float
    """Until the trial begins: imports of torch and others; in packs until one has the trial."""
    loading: float
    """Base, rows and adapter."""
    first_step: float
    """With a small evaluation; in a pack it waits for the other trials."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


def watched(command: list[str], folder: Path, trials: Path) -> StartUp:
    """Run a study's command in a folder; its trials lie in `trials`. Raises SystemExit with what it
    said if it fails."""
    began = time.time()
    running = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    said: list[tuple[float, str]] = []
    lines = running.stderr
    reader = threading.Thread(target=lambda: said.extend(_timed(lines)))
    reader.start()
    head = taken = 0.0
    while running.poll() is None:
        head = head or _head(began)
        taken = taken or _first_written(trials)
        time.sleep(LOOK_SECONDS)
    reader.join()
    if running.returncode:
        raise SystemExit("".join(line for _, line in said)[-4000:])
    told = [event for trial in trials.glob("T*") for event in read_events(trial)]
    up, given = _first_line(said, "study "), _first_line(said, " · started")
    return StartUp(
        command=head - began,
        cluster=up - head,
        given=given - up,
        begun=taken - given,
        loading=_first(told, "started") - taken,
        first_step=_first(told, "finished") - _first(told, "started"),
    )


def library_seconds() -> float:
    """Of importing what is not ours, in a process of its own."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True, capture_output=True)
    return time.perf_counter() - started


def measured(sizes: Sizes) -> dict[str, StartUp]:
    """By side."""
    of_packing = replace(packing.Sizes(), **asdict(sizes), models="tiny", steps=2)
    found = {}
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        model, rows = base_model("tiny", folder), write_rows(folder / "rows.jsonl", sizes.words)
        for pack in map(int, sizes.packs.split(",")):
            content = packing.job(model, rows, pack, of_packing)
            content["train"]["optimizer"]["steps"] = 1
            content["cluster"] = {"storage": str(folder / content["name"])}
            path = folder / f"{content['name']}.yaml"
            path.write_text(json.dumps(content))
            command = [str(Path(sys.executable).with_name("moetune")), "tune", str(path)]
            trials = folder / content["name"] / "studies" / content["name"] / "trials"
            found["a base each" if pack == 1 else f"packs of {pack}"] = watched(
                command, folder, trials
            )
    return found


def shown(found: Mapping[str, StartUp], libraries: float) -> str:
    """A table, a line a part."""
    parts = list(asdict(next(iter(found.values()))))
    rows = [[name, *(f"{getattr(one, name):.1f}" for one in found.values())] for name in parts]
    rows.append(["total", *(f"{one.total:.1f}" for one in found.values())])
    ours = (f"{_beyond(one, libraries):.1f}" for one in found.values())
    rows.append(["beyond Ray's start and two processes' imports", *ours])
    return table(["seconds until the first step", *found], rows)


def _beyond(one: StartUp, libraries: float) -> float:
    return one.total - one.cluster - 2 * libraries


def main() -> None:
    arguments = harness.parser(__doc__, Sizes()).parse_args()
    out, values = harness.output(arguments.json), vars(arguments)
    sizes = replace(Sizes(), **{name: values[name] for name in asdict(Sizes())})
    libraries, found = library_seconds(), measured(sizes)
    text = shown(found, libraries)
    print(f"importing what is not ours takes a process {libraries:.1f} s\n{text}", file=out)
    result: dict[str, Any] = {
        "seconds": {side: asdict(one) for side, one in found.items()},
        "libraries": libraries,
        "beyond": {side: _beyond(one, libraries) for side, one in found.items()},
        "goal": 3.0,
        "sizes": asdict(sizes),
    }
    if sizes == Sizes():
        said = f"Importing what is not ours takes a process {libraries:.1f} s."
        write_section("start_up.py", f"{machine()}\n\n{said}\n\n{text}")
    harness.finish(result, arguments.json)


def _timed(lines: Iterable[str]) -> Iterator[tuple[float, str]]:
    for line in lines:
        yield time.time(), line


def _head(since: float) -> float:
    """When the cluster's first process began; 0 as long as there is none."""
    there = psutil.process_iter(("cmdline", "create_time"))
    begun = [
        float(one.info["create_time"])
        for one in there
        if "ray.scripts.scripts" in (one.info["cmdline"] or ())
    ]
    return min((at for at in begun if at > since), default=0.0)


def _first_written(trials: Path) -> float:
    """When a process took the first trial; 0 as long as none has."""
    found = [one.stat().st_mtime for one in trials.glob("T*/train.json")]
    return min(found, default=0.0)


def _first_line(said: list[tuple[float, str]], words: str) -> float:
    return next(at for at, line in said if words in line)


def _first(told: list[RunEvent], kind: str) -> float:
    return min(event.at for event in told if event.kind == kind)


if __name__ == "__main__":
    main()
