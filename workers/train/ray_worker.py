"""The train loop's two ways to start on Ray. Only this and `ray_process_group` know Ray here.

A trial of one worker runs in a Tune actor that goes from trial to trial and keeps the base model
loaded. A run of several workers is a Ray Train group, which is started again after a failure and
goes on from its last checkpoint, and costs ten times as much to start.
"""

from collections.abc import Mapping
from typing import Any

import ray.train
from ray.tune import Trainable

from workers.parallel.world import World
from workers.run.heartbeat import HeartbeatWriter
from workers.run.record import Metrics, RunRecord
from workers.train.attempt import Attempt, in_precision, watched
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.task import RunTask


def train_in_group(task: RunTask) -> None:
    """What a TorchTrainer runs in each of its workers."""
    world = World.current()
    record = task.record() if world.is_first else RunRecord(task.plan.folder)
    if world.is_first:
        record.begin(task.spec)
    world.barrier()
    heartbeat = HeartbeatWriter(world.rank, world.size).write(record.folder, record.observe)
    with watched(heartbeat, task.spec, record):
        task = in_precision(task)
        attempt = Attempt.begin(TrainingRun(task.spec, task.plan, heartbeat=heartbeat), record)
        ray.train.report(attempt.next_report())
        while not attempt.run.done:
            ray.train.report(attempt.next_report())
        attempt.finish()
        attempt.close()


class TuneWorker(Trainable):  # type: ignore[misc]
    """Trials of one worker, one after another. A subclass, which Tune is given, says what a
    trial's configuration means.

    The CheckpointManager makes the checkpoints, as in a group, and a trial that is started again
    goes on from them: Tune is not asked for any.
    """

    @classmethod
    def task(cls, name: str, config: Mapping[str, Any]) -> RunTask:
        """The run of a trial, from the trial's name and configuration."""
        raise NotImplementedError

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial. It starts with its first step, so that what is wrong with it fails
        the trial alone (Tune cannot handle an actor that fails in setup or reset)."""
        self._inputs: Inputs | None = None
        self._attempt: Attempt | None = None
        self._config = config

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Take another trial; base model and rows stay loaded where they are the same."""
        self.cleanup()
        self._config = config
        return True

    def step(self) -> Metrics:
        """Train to the next report."""
        attempt = self._attempt or self._begin()
        with watched(attempt.run.heartbeat, attempt.run.spec, attempt.record):
            report = attempt.next_report()
            if attempt.run.done:
                attempt.finish()
        return {**report, "done": attempt.run.done}

    def cleanup(self) -> None:
        """Take the adapter off the base model."""
        if self._attempt:
            self._attempt.close()
        self._attempt = None

    def _begin(self) -> Attempt:
        task = self.task(self.trial_name, self._config)
        record = task.record()
        record.begin(task.spec)
        heartbeat = HeartbeatWriter().write(record.folder, record.observe)
        with watched(heartbeat, task.spec, record):
            task = in_precision(task)
            self._inputs = Inputs.load(task.spec, self._inputs)
            run = TrainingRun(task.spec, task.plan, inputs=self._inputs, heartbeat=heartbeat)
            self._attempt = Attempt.begin(run, record)
        return self._attempt
