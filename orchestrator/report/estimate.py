"""What a job's trials would be like: their epochs, a worker's memory, and seconds, as estimates."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.inventory import Inventory
from orchestrator.config.job import JobSpec
from orchestrator.doctor.demand import this_machine
from orchestrator.doctor.pack_room import PackRoom, planned
from orchestrator.doctor.trial_memory import TrialMemory, on_gpu
from orchestrator.monitoring.format import duration, size
from orchestrator.report.earlier import EarlierTrials, earlier_trials
from workers.config.base import InputError

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
    pack: PackRoom | None = None
    """Of such trials that share a base, or might."""
    unseen_tokens: tuple[str, ...] = ()
    """Of adapter.train_tokens those that no training row has."""
    earlier: EarlierTrials | None = None
    """Trials like these that have run before."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "epoch": self.epoch.as_dict(),
            "steps": self.steps,
            "memory": self._memory,
            "pack": self.pack and self.pack.as_dict(),
            "earlier": self.earlier
            and {**self.earlier.as_dict(), "seconds": self._seconds_by(self.earlier)},
            "unseen_tokens": list(self.unseen_tokens),
            "same_rows": self.same_rows and self.same_rows.as_dict(),
            "measured": self.measured and {**self.measured.as_dict(), "seconds": self._seconds},
        }

    def lines(self) -> Iterator[str]:
        """A sentence or two on each."""
        if self.same_rows:
            yield str(self.same_rows)
        if self.unseen_tokens:
            yield (
                f"no training row has {', '.join(self.unseen_tokens)} (adapter.train_tokens), so "
                "that its embedding learns nothing; a special token that a row spells out is text"
            )
        yield f"{self._epochs}; padding is {self.epoch.padding_share:.1%} of what is computed"
        yield self._held()
        yield from self._packed()
        if self.earlier:
            yield (
                f"{_many(self.trials, 'trial')} of {_many(self.steps, 'step')} would take about "
                f"{duration(self._seconds_by(self.earlier))}, if none is stopped early: "
                f"{_many(self.earlier.trials, 'such trial')} of study {self.earlier.study} took "
                f"{self.earlier.step_seconds:.2g} s a step, {self.earlier.at_once} at a time"
            )
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
        if self.pack is None or isinstance(self.memory, str):
            return
        pack = self.pack
        if pack.trials == 1:
            yield "search.pack auto gives each trial a base of its own"
            return
        room = "" if pack.room is None else f" of {size(pack.room)} that a worker has"
        less = f"; about {pack.most} fit{'s' * (pack.most == 1)}" * (pack.most < pack.trials)
        one, together = size(self.memory.total), size(pack.memory.total)
        yield f"one trial takes {one}, a pack of {pack.trials} such trials {together}{room}{less}"

    def _seconds_by(self, earlier: EarlierTrials) -> float:
        return earlier.seconds(self.trials, self.steps)

    @property
    def _seconds(self) -> float:
        if self.measured is None:
            return 0.0
        step = self.measured.seconds(self.epoch.positions_per_step)
        return step * self.steps * self.trials


def job_estimate(
    job: JobSpec, there: Inventory | None = None, *, measure: bool = False
) -> JobEstimate:
    """Of a job whose rows this node has encoded, on such nodes; this machine's unless told. With
    `measure`, a few steps are run here. InputError."""
    from workers.data.epoch import steps_of_run
    from workers.data.store.epoch_figures import epoch_figures
    from workers.data.store.same_rows import same_rows
    from workers.models.device import settled
    from workers.train.measure import measured_steps

    held = TrialMemory(job)
    train = held.rows[job.train.data]
    memory: MemoryEstimate | str
    pack = None
    try:
        largest, memory = held.largest
    except InputError as error:
        largest, memory = held.first, str(error)
    else:
        pack = planned(job, held, there or this_machine(job))
    return JobEstimate(
        epoch=epoch_figures(train, job.train),
        steps=steps_of_run(job.train.optimizer, lambda: train.counts.parts(job.train.data)),
        memory=memory,
        largest=_varied(job, largest),
        same_rows=same_rows(train, held.validation),
        measured=measured_steps(largest, held.rows[largest.data]) if measure else None,
        trials=job.search.trials,
        unseen_tokens=held.unseen_tokens,
        dtype=settled(held.on_worker(largest).model).dtype,
        pack=pack,
        earlier=earlier_trials(job, pack.trials if pack and job.search.pack != 1 else 1),
        assumes_gpu=largest.model.settled_dtype is None and on_gpu(job, largest),
    )


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
