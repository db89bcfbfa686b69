"""One run, as it is sent to the processes that train it. Without torch."""

from collections.abc import Callable
from dataclasses import dataclass

from workers.config.train import TrainSpec
from workers.run.record import Observer, RunPlan, RunRecord

MakeObserver = Callable[[RunPlan], Observer]
"""Called once for each run, in the process of its first worker."""


@dataclass(frozen=True)
class RunTask:
    """One run, as it is sent to the workers."""

    spec: TrainSpec
    plan: RunPlan
    make_observer: MakeObserver | None = None

    @property
    def name(self) -> str:
        """Of its folder; of a trial the trial's."""
        return self.plan.folder.name

    def record(self) -> RunRecord:
        """The run's files, with its observer."""
        return RunRecord(self.plan.folder, self.make_observer and self.make_observer(self.plan))
