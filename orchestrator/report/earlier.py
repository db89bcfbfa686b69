"""What trials took in studies before: the only honest measure of what such trials will take."""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.job import JobSpec, portable
from workers.run.events import read_events


@dataclass(frozen=True)
class TrialSpan:
    """A trial from its start to its end, in seconds since 1970."""

    start: float
    end: float
    steps: int | None
    """That it took; None where it was stopped, failed, or began more than once."""


@dataclass(frozen=True)
class EarlierTrials:
    """The finished trials of a study whose trials cost what a job's do."""

    study: str
    trials: int
    step_seconds: float
    """Median, of a trial: loading, evaluations, and waiting for the trials beside it included."""
    at_once: int
    """So many ran at a time."""

    def seconds(self, trials: int, steps: int) -> float:
        """For so many trials of so many steps, if none is stopped early."""
        return math.ceil(trials / self.at_once) * steps * self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def earlier_trials(job: JobSpec, pack: int) -> EarlierTrials | None:
    """Of the newest study in the job's storage with finished trials on the same base, rows and
    resources, with batches and evaluations alike, in packs of `pack`; None where there is none."""
    wanted = _cost(portable(job), pack)
    folders = sorted(job.study_folder().parent.glob("*/job.json"), key=_written, reverse=True)
    for path in folders:
        known = _read(path)
        if known and _cost(known, known.search.pack) == wanted:
            found = _measured(path.parent.name, list(_spans(path.parent)))
            if found:
                return found
    return None


def _measured(study: str, spans: Sequence[TrialSpan]) -> EarlierTrials | None:
    each = [(one.end - one.start) / one.steps for one in spans if one.steps]
    if not each:
        return None
    at_once = max(sum(one.start <= other.start < one.end for one in spans) for other in spans)
    return EarlierTrials(study, len(each), statistics.median(each), at_once)


def _spans(study: Path) -> Iterator[TrialSpan]:
    """Of trials that have ended in some way."""
    for folder in study.glob("trials/T*"):
        events = read_events(folder)
        starts = [one.at for one in events if one.kind in ("started", "resumed")]
        last = next((one for one in reversed(events) if one.kind == "finished"), None)
        if last and starts:
            yield TrialSpan(starts[0], last.at, last.step if len(starts) == 1 else None)
        elif starts and (told := folder / "progress.jsonl").exists():
            yield TrialSpan(starts[0], _written(told), None)


def _cost(job: JobSpec, pack: int | str) -> tuple[object, ...]:
    """What a trial's seconds hang on, but for its shape and number of steps."""
    train, search, batch = job.train, job.search, job.train.optimizer
    rows = (batch.batch_size, batch.micro_batch_size, batch.micro_batch_tokens)
    resources = (search.cpus_per_worker, search.gpus_per_worker)
    beside = min(search.max_concurrent, search.trials)
    what = (train.model, train.data, train.evaluation, train.parallel)
    return *what, *rows, *resources, beside, pack


def _read(path: Path) -> JobSpec | None:
    """None for one that this moetune cannot read."""
    with suppress(OSError, ValidationError):
        return JobSpec.model_validate_json(path.read_bytes())
    return None


def _written(path: Path) -> float:
    return path.stat().st_mtime
