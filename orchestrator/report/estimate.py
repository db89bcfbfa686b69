"""What a job's trials would be like: their epochs, a worker's memory, and seconds, as estimates."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.config.job import JobSpec
from orchestrator.monitoring.format import duration, size
from orchestrator.tuning.packs.size import pack_size
from workers.config.base import InputError, override
from workers.config.optimizers import FLOAT, OPTIMIZERS

if TYPE_CHECKING:
    from workers.config.train import TrainSpec
    from workers.data.store.epoch_figures import EpochFigures
    from workers.data.store.same_rows import SameRows
    from workers.models.memory import MemoryEstimate
    from workers.train.measure import MeasuredSteps


@dataclass(frozen=True)
class JobEstimate:
    """Of a job that has passed `preflight`."""

    epoch: "EpochFigures"
    """Of the job's own fields."""
    steps: int
    memory: "MemoryEstimate | str"
    """Of a worker of the largest trial; or why nothing is known of it."""
    largest: dict[str, Any]
    """What the search varies of that trial."""
    same_rows: "SameRows | None"
    measured: "MeasuredSteps | None" = None
    """Of that trial."""
    trials: int = 1
    dtype: str = "float32"
    """What the estimate of memory takes for the base's precision."""
    assumes_gpu: bool = False
    """Whether that is for a worker's GPU to decide."""
    slots: int = 1
    """Trials of a pack."""
    pack: "MemoryEstimate | None" = None
    """Of a worker of a pack of such trials, if trials are packed."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "epoch": self.epoch.as_dict(),
            "steps": self.steps,
            "memory": self._memory,
            "pack": self.pack and {**self.pack.as_dict(), "trials": self.slots},
            "same_rows": self.same_rows and self.same_rows.as_dict(),
            "measured": self.measured and {**self.measured.as_dict(), "seconds": self._seconds},
        }

    def lines(self) -> Iterator[str]:
        """A sentence or two on each."""
        if self.same_rows:
            yield str(self.same_rows)
        yield f"{self._epochs}; padding is {self.epoch.padding_share:.1%} of what is computed"
        yield self._held()
        yield from self._packed()
        if self.measured:
            yield (
                f"measured on this machine: {self.measured}; {_many(self.trials, 'trial')} of "
                f"{_many(self.steps, 'step')} would take at most {duration(self._seconds)} here, "
                "one after another and without evaluations"
            )

    @property
    def _epochs(self) -> str:
        if self.epoch.steps is None or self.epoch.epochs is None:
            return "rows are streamed, and only the first were looked at"
        return (
            f"an epoch is {_many(self.epoch.steps, 'step')}; {_many(self.steps, 'step')} are "
            f"{self.epoch.epochs:.3g} epochs"
        )

    @property
    def _memory(self) -> dict[str, Any]:
        if isinstance(self.memory, str):
            return {"unknown": self.memory}
        return {**self.memory.as_dict(), "trial": self.largest, "dtype": self.dtype}

    def _held(self) -> str:
        if isinstance(self.memory, str):
            return f"a worker's memory is not estimated: {self.memory}"
        trial = ", ".join(f"{path} {value}" for path, value in self.largest.items())
        parts = self.memory.as_dict()
        total = parts.pop("total")
        held = ", ".join(f"{name} {size(some)}" for name, some in parts.items() if some)
        whose = f" in the largest trial ({trial})" if trial else ""
        if_so = " if its GPU computes that, else in float32" if self.assumes_gpu else ""
        return (
            f"a worker holds about {size(total)}{whose}: {held}; this is an estimate with the base "
            f"in {self.dtype}{if_so}, beside what Python and its libraries take"
        )

    def _packed(self) -> Iterator[str]:
        if self.pack and not isinstance(self.memory, str):
            one, all_of_them = size(self.memory.total), size(self.pack.total)
            yield f"one trial takes {one}, a pack of {self.slots} such trials {all_of_them}"

    @property
    def _seconds(self) -> float:
        if self.measured is None:
            return 0.0
        step = self.measured.seconds(self.epoch.positions_per_step)
        return step * self.steps * self.trials


def job_estimate(job: JobSpec, *, measure: bool = False) -> JobEstimate:
    """Of a job whose rows this node has encoded. With `measure`, a few steps are run here.
    InputError."""
    from workers.data.encode import Encoder
    from workers.data.epoch import steps_of_run
    from workers.data.store.epoch_figures import epoch_figures
    from workers.data.store.same_rows import same_rows
    from workers.data.store.token_store import TokenStore
    from workers.data.streaming.windows import looked_at
    from workers.models.base import check_base
    from workers.models.device import settled
    from workers.models.memory import estimate
    from workers.train.measure import measured_steps

    tokenizer = check_base(job.train.model)
    trials = _large(job.search_space().samples())
    encoders = {
        data: Encoder(tokenizer, data)
        for data in (job.train.data, *(trial.data for trial in trials))
    }
    rows = {data: looked_at(encoder) for data, encoder in encoders.items()}
    train, store = rows[job.train.data], TokenStore(encoders[job.train.data])
    validation = store.validation(job.train.evaluation.rows_per_task)

    def held(trial: "TrainSpec", slots: int = 1) -> "MemoryEstimate":
        mine = rows[trial.data]
        stored = mine.examples.bytes + validation.examples.bytes
        at_most = epoch_figures(mine, trial).largest
        own = _on_worker(job, trial)
        return estimate(own, at_most, stored, beside=[own] * (slots - 1))

    memory: MemoryEstimate | str
    try:
        memory, largest = max(((held(one), one) for one in trials), key=lambda pair: pair[0].total)
    except InputError as error:
        memory, largest = str(error), trials[0]
    slots = pack_size(job)
    packed = slots > 1 and not isinstance(memory, str)
    return JobEstimate(
        epoch=epoch_figures(train, job.train),
        steps=steps_of_run(job.train.optimizer, lambda: train.counts.parts(job.train.data)),
        memory=memory,
        largest=_varied(job, largest),
        same_rows=same_rows(train, validation),
        measured=measured_steps(largest, rows[largest.data]) if measure else None,
        trials=job.search.trials,
        dtype=settled(_on_worker(job, largest).model).dtype,
        assumes_gpu=largest.model.settled_dtype is None and _on_gpu(job, largest),
        slots=slots,
        pack=held(largest, slots) if packed else None,
    )


def _on_worker(job: JobSpec, trial: "TrainSpec") -> "TrainSpec":
    """With a worker's GPU and what it computes, which this node may lack."""
    if not _on_gpu(job, trial):
        return trial
    dtype = trial.model.settled_dtype or "bfloat16"
    return override(trial, {"model.device": "cuda", "model.dtype": dtype}, "memory")


def _on_gpu(job: JobSpec, trial: "TrainSpec") -> bool:
    """Whether a worker has one for certain."""
    device = trial.model.device
    return device == "cuda" or (device == "auto" and job.search.gpus_per_worker > 0)


def _large(trials: "Iterable[TrainSpec]") -> "list[TrainSpec]":
    """Those that may be the largest: with the most or longest rows at once, weights, or slots."""
    keys = (
        lambda one: one.data.max_length,
        lambda one: one.trained_at_once(one.parallel.max_workers),
        lambda one: one.pass_limit.tokens or 0,
        _trained_bytes,
        lambda one: one.adapter.slots(max(one.adapter.expert_counts)),
    )
    known = list(trials)
    found = [max(known, key=key) for key in keys]
    return [one for at, one in enumerate(found) if one not in found[:at]]


def _trained_bytes(trial: "TrainSpec") -> float:
    """In proportion to what adapter, gradients and optimizer take."""
    adapter, optimizer = trial.adapter, trial.optimizer
    kept = OPTIMIZERS[optimizer.name].bytes_of_weight(optimizer.momentum, adapter.rank)
    return max(adapter.expert_counts) * adapter.rank * (2 * FLOAT + kept)


def _varied(job: JobSpec, trial: "TrainSpec") -> dict[str, Any]:
    values: Any = trial.model_dump(mode="json")
    found = {}
    for path in filter(_fills_memory, job.search_space().varied()):
        place = values
        for part in path.split("."):
            place = place[part]
        found[path] = place
    return found


def _fills_memory(path: str) -> bool:
    named = ("adapter.", "data.", "optimizer.name", "optimizer.momentum")
    return path.startswith(named) or path.endswith(("batch_size", "batch_tokens"))


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
