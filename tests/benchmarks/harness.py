"""What all benchmarks share: their options, one line of JSON at the end, CPU time, peak memory."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch


def parser(doc: str | None, sizes: Any) -> argparse.ArgumentParser:
    """`--json PATH|-`, and an option for every field of the dataclass `sizes`."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument(
        "--json", metavar="PATH|-", help="also write the JSON to PATH; -: print only the JSON"
    )
    for name, value in asdict(sizes).items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return made


def output(path: str | None) -> TextIO:
    """Where tables go: standard output is the JSON's alone with `--json -`."""
    return sys.stderr if path == "-" else sys.stdout


def finish(result: object, path: str | None) -> None:
    """End with the result as one line of JSON, also in the file at `path`."""
    line = json.dumps(result)
    if path not in (None, "-"):
        Path(str(path)).write_text(line + "\n")
    print(line)


def milliseconds(turn: Callable[[], object]) -> float:
    """CPU time of this process, all its threads."""
    start = time.process_time()
    turn()
    return 1000 * (time.process_time() - start)


def peak_bytes(turn: Callable[[], object]) -> int:
    """The most that torch holds during the turn above what it held before.

    From the allocator's own record, which every tensor and temporary is in; the process's resident
    size shows it only as far as malloc gives memory back. oneDNN's scratch pads are not in it.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as recorded:
        turn()
    events = recorded.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
