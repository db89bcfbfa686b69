"""One contest: every contestant in a process of its own, turn by turn."""

import json
import statistics
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer_setup import Setup
from serving_process import environment

WORKER = Path(__file__).with_name("peer_worker.py")
WARM_UP = 2
"""Rounds that do not count: the first ones make optimizer states and fill caches."""
TOLERANCE = 1e-4
"""Largest difference of logits that should be equal, which are about 2."""


class Worker:
    """A contestant's process."""

    def __init__(self, name: str, python: Path, setup: Setup, log: Path) -> None:
        self._name, self._log = name, log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [str(python), str(WORKER), name, setup.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(python),
            )

    def answer(self) -> Any:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} failed:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)

    def ask(self, request: str) -> Any:
        """Its answer to a request (see peer_worker)."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of a worker that ended, answer() shows the log
            print(request, file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """End it, whatever it does: it keeps nothing."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Contest:
    """Figures of one shape and number of experts, by contestant."""

    shape: str
    experts: int
    figures: dict[str, dict[str, float]]
    """`step` and `evaluation`: median CPU milliseconds; `memory`: peak bytes of a training step
    above what was held before it. Each by contestant."""
    trainable: dict[str, int]
    """Numbers that are trained."""
    difference: float
    """Largest difference of logits that should be equal."""

    def ratio(self, part: str, over: str, under: str) -> float | None:
        """`over`'s figure by `under`'s; None where one did not take part."""
        found = self.figures[part]
        return round(found[over] / found[under], 3) if {over, under} <= found.keys() else None


@contextmanager
def workers(pythons: Mapping[str, Path], setup: Setup, logs: Path) -> Iterator[dict[str, Worker]]:
    """All contestants' processes, side by side."""
    with ExitStack() as stack:
        started = {}
        for name, python in pythons.items():
            started[name] = Worker(name, python, setup, logs / f"{name}.log")
            stack.callback(started[name].close)
        yield started


def contest(shape: str, setup: Setup, pythons: Mapping[str, Path], folder: Path) -> Contest:
    """Let the contestants take turns. `folder` takes their logs and logits."""
    with workers(pythons, setup, folder) as running:
        facts = {name: worker.answer() for name, worker in running.items()}
        if len(builds := {fact["torch"] for fact in facts.values()}) > 1:
            raise SystemExit(f"the contestants must have the same torch, not {sorted(builds)}")
        difference = compare(running, folder)
        figures = take_turns(running, setup.sizes.rounds)
    trainable = {name: fact["trainable"] for name, fact in facts.items()}
    return Contest(shape, setup.experts, figures, trainable, difference)


def take_turns(running: Mapping[str, Worker], rounds: int) -> dict[str, dict[str, float]]:
    """The figures of a Contest."""
    turns: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in running} for kind in ("step", "evaluation")
    }
    for _ in range(WARM_UP + rounds):
        for kind, taken in turns.items():
            for name, worker in running.items():
                taken[name].append(worker.ask(kind))
    medians = {
        kind: {name: statistics.median(values[WARM_UP:]) for name, values in taken.items()}
        for kind, taken in turns.items()
    }
    return medians | {"memory": {name: worker.ask("memory") for name, worker in running.items()}}


def compare(running: dict[str, Worker], folder: Path) -> float:
    """Largest difference of logits: of all bare models, and of the two MoE adapters."""
    logits = {
        name: torch.load(worker.ask(f"logits {folder / name}.pt"))
        for name, worker in running.items()
    }
    ours = logits["moetune"]
    pairs = [(ours["bare"], theirs["bare"]) for theirs in logits.values()]
    if "moe-peft" in logits:
        pairs.append((ours["adapted"], logits["moe-peft"]["adapted"]))
    difference = max(float((mine - other).abs().max()) for mine, other in pairs)
    if difference > TOLERANCE:
        raise SystemExit(f"the contestants' logits differ by {difference:.2g}")
    return difference
