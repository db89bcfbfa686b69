"""How many optimizer steps a job's trials make, for who must know it before they report it."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.config.job import JobSpec
from workers.config.base import override

if TYPE_CHECKING:
    from workers.config.data import DataSpec
    from workers.config.train import TrainSpec
    from workers.data.counts import RowCounts
    from workers.data.epoch import Part


def steps_of_trial(spec: "TrainSpec") -> int:
    """Steps of a run; its rows are looked at where it says epochs. InputError."""
    from workers.data.epoch import steps_of_run

    return steps_of_run(spec.optimizer, lambda: _parts(spec))


def most_steps(job: JobSpec) -> int:
    """Steps that no trial of the job makes more than. InputError."""
    trials = list(job.search_space().samples())
    fixed = [trial.optimizer.steps for trial in trials if trial.optimizer.steps]
    epochs = max((trial.optimizer.epochs or 0.0 for trial in trials), default=0.0)
    if not epochs:
        return max(fixed)
    # Which values may meet, only the search knows.
    longest = {
        "optimizer.epochs": epochs,
        "optimizer.batch_size": min(trial.optimizer.batch_size for trial in trials),
        "optimizer.micro_batch_size": None,
        "optimizer.warmup_steps": 0,
    }
    by_data = {trial.data: override(trial, longest, job.name) for trial in trials}
    return max(*fixed, 0, *map(steps_of_trial, by_data.values()))


def check_warmup(job: JobSpec, counts: "Mapping[DataSpec, RowCounts]") -> None:
    """InputError where the rows make fewer steps of a trial's epochs than its warm-up takes."""
    from workers.data.epoch import steps_of_run

    for trial in job.search_space().samples():
        rows = counts[trial.data]
        steps_of_run(trial.optimizer, partial(rows.parts, trial.data))


def _parts(spec: "TrainSpec") -> "list[Part]":
    """Of the rows that this node has encoded, or encodes now."""
    from workers.data.encode import Encoder
    from workers.data.store.token_store import TokenStore
    from workers.models.base import check_base

    store = TokenStore(Encoder(check_base(spec.model), spec.data))
    return store.training().counts.parts(spec.data)
