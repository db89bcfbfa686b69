"""The train loop's two ways to start on Ray. Nothing else in workers knows Ray.

A trial of one worker runs in a Tune actor that goes from trial to trial and keeps the base model
loaded. A run of several workers is a Ray Train group, which resumes by itself from its last
checkpoint after a failure, and costs ten times as much to start.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.tune import Trainable

from workers.parallel.world import World
from workers.spec import TrainSpec
from workers.train.heartbeat import Heart
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.record import Metrics, Observer, RunPlan, RunRecord

MakeObserver = Callable[[RunPlan], Observer]
"""Called once for each run, in the process of its first worker."""


@dataclass(frozen=True)
class Task:
    """One run, as it is sent to the workers."""

    spec: TrainSpec
    plan: RunPlan
    make_observer: MakeObserver | None = None

    def record(self) -> RunRecord:
        """The run's files, with its observer."""
        return RunRecord(self.plan.folder, self.make_observer and self.make_observer(self.plan))


def train_in_group(task: Task) -> None:
    """What a TorchTrainer runs in each of its workers."""
    world = World.current()
    record = task.record() if world.is_first else RunRecord(task.plan.folder)
    if world.is_first:
        record.begin(task.spec)
    world.wait()
    with record.failure_kept():
        _train(task, world, record)


def _train(task: Task, world: World, record: RunRecord) -> None:
    heart = Heart(world.rank, world.size).write(record.folder, record.observe)
    run = TrainingRun(task.spec, task.plan, world=world, heart=heart)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            run.load(Path(folder))
    if world.is_first:
        record.go_on(run.step)
    while not run.done:
        metrics = run.advance()
        run.save_adapter(record.adapter)
        if world.is_first:
            record.add(metrics)
        with tempfile.TemporaryDirectory() as folder:
            run.save(Path(folder))
            kept = ray.train.Checkpoint.from_directory(folder) if world.is_first else None
            ray.train.report({**metrics, "folder": str(record.folder)}, checkpoint=kept)


class TuneWorker(Trainable):  # type: ignore[misc]
    """Trials of one worker, one after another. A subclass, which Tune is given, says what a
    trial's configuration means."""

    @classmethod
    def task(cls, name: str, config: Mapping[str, Any]) -> Task:
        """The run of a trial, from the trial's name and configuration."""
        raise NotImplementedError

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial. It starts with its first step, so that what is wrong with it fails
        the trial alone (Tune cannot handle an actor that fails in setup or reset)."""
        self._inputs: Inputs | None = None
        self._run: TrainingRun | None = None
        self._config = config

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Take another trial; base model and rows stay loaded where they are the same."""
        self.cleanup()
        self._config = config
        return True

    def step(self) -> Metrics:
        """Train to the next report."""
        run = self._run or self._start()
        with self._record.failure_kept():
            metrics = run.advance()
            run.save_adapter(self._record.adapter)
        self._record.add(metrics)
        return {**metrics, "folder": str(self._record.folder), "done": run.done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write what `load_checkpoint` needs to go on exactly."""
        (self._run or self._start()).save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from a checkpoint, in this actor or in another one than wrote it."""
        self.cleanup()
        self._start(Path(checkpoint))

    def cleanup(self) -> None:
        """Take the adapter off the base model."""
        if self._run:
            self._run.close()
        self._run = None

    def _start(self, checkpoint: Path | None = None) -> TrainingRun:
        task = self.task(self.trial_name, self._config)
        self._record = task.record()
        self._record.begin(task.spec)
        with self._record.failure_kept():
            self._inputs = Inputs.load(task.spec, self._inputs)
            heart = Heart().write(self._record.folder, self._record.observe)
            run = TrainingRun(task.spec, task.plan, inputs=self._inputs, heart=heart)
            self._run = run
            if checkpoint:
                run.load(checkpoint)
        self._record.go_on(run.step)
        return run
