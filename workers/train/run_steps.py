"""A run's optimizer steps: the rows of each, and what they came to since the last report."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from workers.config.train import TrainSpec
from workers.data.batches import Batch, Batches
from workers.data.counts import RowCounts
from workers.data.streaming.batches import StreamedBatches
from workers.parallel.world import World
from workers.run.events import EventLog
from workers.run.heartbeat import HeartbeatWriter
from workers.run.progress import StepTimer
from workers.run.record import Metrics, RunPlan, note_rows
from workers.train.checkpoint import state as checkpoint
from workers.train.inputs import Inputs
from workers.train.layout import lay_out
from workers.train.out_of_memory import FittingPasses, StepOutOfMemoryError
from workers.train.report import summary
from workers.train.step import StepResult, TrainStep


class RunSteps:
    """Where a run is among its steps. Every worker of the run calls the same methods.

    `take` is a whole step. Who takes the steps of several runs at once asks each for its `batches`
    and tells it what it `took`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- what a run is made of
        self,
        spec: TrainSpec,
        plan: RunPlan,
        inputs: Inputs,
        world: World,
        batches: Batches | StreamedBatches,
        total: int,
        heartbeat: HeartbeatWriter,
    ) -> None:
        self.taken = 0
        self.total = total
        """Steps in all."""
        self.batches = batches
        self._spec, self._plan, self._inputs, self._world = spec, plan, inputs, world
        self._heartbeat = heartbeat
        self.fitting = FittingPasses(spec, EventLog(plan.folder), world.rank)
        self._timer = StepTimer(total, spec.evaluation.every, world.size)
        self.results: list[StepResult] = []
        """Since the last report."""
        self._seconds = 0.0

    @property
    def next_report(self) -> int:
        """How many steps are done when the next evaluation is due."""
        every = self._spec.evaluation.every
        return min((self.taken // every + 1) * every, self.total)

    @property
    def epoch(self) -> float:
        """Passes through the rows so far."""
        return self.batches.epoch(self.taken)

    @property
    def stream(self) -> StreamedBatches | None:
        """The rows, where they are read as they come."""
        return self.batches if isinstance(self.batches, StreamedBatches) else None

    @property
    def counts(self) -> RowCounts:
        """What encoding did to the rows to learn from; of a stream to those of this window."""
        return self.stream.counts if self.stream else self._inputs.train_counts

    def begin(self) -> None:
        """Steps follow; what went before was an evaluation, or the loading."""
        self._timer.start()

    def take(self, step: TrainStep) -> None:
        """A step; in smaller passes from here on, where memory runs out."""
        started = time.perf_counter()
        self._heartbeat.beat("data", self.taken)
        before = checkpoint.random_states()
        while True:
            try:
                result = step(self.next_batches())
                break
            except StepOutOfMemoryError:
                self.halve()
            checkpoint.set_random_states(before)
        self.took(result, time.perf_counter() - started)

    def next_batches(self) -> list[Batch]:
        """The next step's forward passes on this worker."""
        passes = self.batches.micro_batches(self.taken, self.fitting.training)
        return lay_out(self._spec, passes, self._inputs.pad_token_id)

    def halve(self) -> None:
        """A step lacked memory, and is to be taken in smaller passes."""
        self.fitting.halve_training(self.batches, self.taken)

    def took(self, result: StepResult, seconds: float) -> None:
        """The next step is done."""
        self.results.append(result)
        self._seconds += seconds
        self._note(result)
        self.taken += 1
        self._heartbeat.progress = self._timer.step(self.taken, self.epoch, result)

    def summary(self, before: Metrics) -> Metrics:
        """What the steps since the last report came to; `before` is what that said."""
        return summary(self.results, self._seconds, before)

    def reported(self) -> None:
        """A report is made: count anew."""
        self.results, self._seconds = [], 0.0

    def state(self) -> dict[str, Any]:
        """For a checkpoint; a collective."""
        return {
            "step": self.taken,
            "results": [asdict(result) for result in self.results],
            "seconds": self._seconds,
            "stream": self.stream.position(self.taken) if self.stream else None,
            "fitting": self.fitting.state(self._world),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. The data position is the step, and of a stream its place too."""
        self.taken = state["step"]
        self.results = [StepResult(**result) for result in state["results"]]
        self._seconds = state["seconds"]
        self.fitting.load_state(state.get("fitting"))
        if self.stream:
            self.stream.seek(state["stream"])

    def _note(self, result: StepResult) -> None:
        if result.fault and self._world.is_first:
            EventLog(self._plan.folder).note("skipped", result.fault, step=self.taken)
        if self._spec.data.record_rows:
            mine = self.batches.mine(self.taken, self.fitting.training)
            everyone = self._world.gather(mine)
            if self._world.is_first:
                note_rows(self._plan.folder, self.taken, everyone)
