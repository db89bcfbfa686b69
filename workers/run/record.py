"""What a run leaves on disk for people and for later commands; readable without torch.

train.json      the resolved specification, with the precision that a worker settled
exchange.json   with expert parallelism, which exchange it takes, why, and the predicted bytes
progress.jsonl  one line of metrics for each report
adapter/        the latest complete adapter; with early stopping that of the best evaluation so far
samples.json    some validation rows with its answers, at the latest evaluation that has any, or at
                the best one
ranks/          where each worker is at the moment (workers.run.heartbeat)
checkpoints/    what the run can be gone on with from (workers.train.checkpoint.manager)
events.jsonl    what happened to it, over all attempts (workers.run.events)
error.txt       why the run failed, if it did
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.run.early_stopping import WatchedMetric
from workers.run.files import write_text
from workers.run.json_lines import append_line, read_lines

PROGRESS = "progress.jsonl"
ROWS = "rows.jsonl"
Metrics = dict[str, Any]
"""Nested names to numbers, lists of numbers and strings."""


@dataclass(frozen=True)
class RunPlan:
    """Which run this is, and where its files go."""

    folder: Path
    """Everything that the run writes lies below; all workers must see it."""
    study: str
    """Name of the study, for the adapter's lineage."""
    trial: int | None = None
    """Number of the trial, if the run is one of a study's trials."""
    _: KW_ONLY
    shared: Path | None = None
    """Folder of the study, if its trials are held to the same inputs (workers.train.used)."""
    watched: WatchedMetric = field(default_factory=WatchedMetric)
    """What early stopping looks at."""


Observer = Callable[[Metrics], None]
"""Gets every report, and in between each step's figures about once a second (in another thread), in
the process of the first worker. Both have the same form; the latter lacks `validation`."""


class RunRecord:
    """Writes the files of one run."""

    def __init__(self, folder: Path, observe: Observer | None = None) -> None:
        self.folder = folder
        self.observe = observe

    @property
    def adapter(self) -> Path:
        """Folder of the adapter that the run leaves, as far as it is."""
        return self.folder / "adapter"

    @property
    def samples(self) -> Path:
        """Some rows with the adapter's answers (workers.run.samples)."""
        return self.folder / "samples.json"

    def begin(self, spec: TrainSpec) -> None:
        """A new attempt at the run: forget why the last one failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._error.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "ranks", ignore_errors=True)
        self.specify(spec)

    def specify(self, spec: TrainSpec) -> None:
        """Keep what is run, as far as it is settled."""
        text = spec.model_dump_json(indent=2)
        write_text(self.folder / "train.json", text + "\n", durable=True)

    def exchange(self, choice: Mapping[str, Any]) -> None:
        """Keep what was decided on the exchange between the workers."""
        write_text(self.folder / "exchange.json", json.dumps(choice, indent=2) + "\n")

    def go_on(self, step: int) -> None:
        """Continue after `step`: what was reported later, and lost, is taken back."""
        kept = [metrics for metrics in read_progress(self.folder) if metrics["step"] <= step]
        text = "".join(_line(metrics) + "\n" for metrics in kept)
        write_text(self.folder / PROGRESS, text, durable=True)

    def add(self, metrics: Metrics) -> None:
        """Append one report, and show it to the observer."""
        append_line(self.folder / PROGRESS, _line(metrics))
        if self.observe:
            self.observe(metrics)

    @contextmanager
    def failure_kept(self) -> Iterator[None]:
        """Keep the reason of a failure inside the block, as one line. The first of several workers
        to fail has the cause; the others then fail for want of it."""
        try:
            yield
        except Exception as error:
            self.failed(reason(error))
            raise

    def failed(self, why: str) -> None:
        """Keep the reason of a failure, unless there is one already, or the disk is full."""
        if not self._error.exists():
            with suppress(OSError):
                write_text(self._error, why + "\n")

    @property
    def _error(self) -> Path:
        return self.folder / "error.txt"


def read_progress(folder: Path) -> list[Metrics]:
    """All reports of the run in `folder`, in order."""
    return read_lines(folder / PROGRESS)


def reason(error: BaseException) -> str:
    """`error` as one line, with its type unless the message was written for people."""
    message = " ".join(str(error).split())
    named = type(error).__name__ in ("DivergedError", "DoesNotFitError", "RunFailedError")
    written_for_people = isinstance(error, InputError) or named
    return message if written_for_people else f"{type(error).__name__}: {message}"


def _line(metrics: Metrics) -> str:
    return json.dumps(metrics, allow_nan=False)


def note_rows(folder: Path, step: int, by_worker: Sequence[Sequence[int]]) -> None:
    """Add the rows (numbers from 0 among the training rows that are kept) of a step (from 0)."""
    append_line(folder / ROWS, json.dumps({"step": step, "workers": by_worker}))


def read_rows(folder: Path) -> dict[int, list[list[int]]]:
    """By step, the rows of each worker that went into the parameters."""
    steps: list[dict[str, Any]] = read_lines(folder / ROWS)
    return {line["step"]: line["workers"] for line in steps}
