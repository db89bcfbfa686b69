"""The train loop's two ways to start on Ray. Nothing else in workers knows Ray.

A trial of one worker runs in a Tune actor that goes from trial to trial and keeps the base model
loaded. A run of several workers is a Ray Train group, which is started again after a failure and
goes on from its last checkpoint, and costs ten times as much to start.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.tune import Trainable

from workers.parallel.world import World
from workers.spec import TrainSpec
from workers.train.events import EventLog, read_events
from workers.train.heartbeat import Heart
from workers.train.inputs import Inputs
from workers.train.keeper import Keeper
from workers.train.loop import TrainingRun
from workers.train.record import Metrics, Observer, RunPlan, RunRecord
from workers.train.used import hold_to_study, used_file
from workers.train.watchdog import Watchdog

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
    heart = Heart(world.rank, world.size).write(record.folder, record.observe)
    with record.failure_kept(), _watched(heart, task.spec, record):
        _train(task, heart, record)


def _train(task: Task, heart: Heart, record: RunRecord) -> None:
    run = TrainingRun(task.spec, task.plan, heart=heart)
    _hold_to_study(run)
    keeper = Keeper(task.spec, task.plan, run.world)
    keeper.resume(run)
    if run.world.is_first:
        _begin(run, record)
    if run.done:  # ended just before it could say so
        ray.train.report({**run.metrics, "folder": str(record.folder)})
    while not run.done:
        metrics = run.advance(keeper.after_step)
        run.save_adapter(record.adapter)
        if run.world.is_first:
            record.add(metrics)
        keeper.after_report(run)
        heart.beat("report")
        ray.train.report({**metrics, "folder": str(record.folder)})
    keeper.finish()
    if run.world.is_first:
        EventLog(record.folder).note("finished", "all steps are done", step=run.step)
    run.close()


class TuneWorker(Trainable):  # type: ignore[misc]
    """Trials of one worker, one after another. A subclass, which Tune is given, says what a
    trial's configuration means.

    Tune makes a checkpoint after each report; the Keeper adds those in between.
    """

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
        with self._record.failure_kept(), _watched(run.heart, run.spec, self._record):
            metrics = run.advance(self._keeper.after_step)
            run.save_adapter(self._record.adapter)
            if run.done:
                self._keeper.finish()
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
            _hold_to_study(run)
            self._keeper = Keeper(task.spec, task.plan, World())
            self._keeper.resume(run, checkpoint)
        _begin(run, self._record)
        return run


def _hold_to_study(run: TrainingRun) -> None:
    """Refuse rows or a base that other trials of the study did not have."""
    if run.plan.shared and run.world.is_first:
        hold_to_study(used_file(run.plan.shared, run.spec), run.inputs.used)


def _begin(run: TrainingRun, record: RunRecord) -> None:
    """Take back what was reported after the checkpoint, and say that an attempt begins."""
    record.go_on(run.step)
    again = bool(read_events(record.folder))
    many = "1 worker" if run.world.size == 1 else f"{run.world.size} workers"
    where = f"after step {run.step} of {run.spec.optimizer.steps} with {many}"
    log = EventLog(record.folder)
    log.note("resumed" if again else "started", where, step=run.step)
    for counts in (run.inputs.train_counts, run.inputs.validation_counts):
        if counts.losses():
            log.note("data", str(counts))
    if run.exchange:
        record.exchange(asdict(run.exchange))
        log.note("exchange", run.exchange.words)


@contextmanager
def _watched(heart: Heart, spec: TrainSpec, record: RunRecord) -> Iterator[None]:
    """End this process if it hangs inside the block, and leave the reason in the run's files."""

    def tell(why: str) -> None:
        EventLog(record.folder).note("hung", why, worker=heart.rank)
        record.failed(why)

    watchdog = Watchdog(heart, record.folder, spec.parallel.hang_timeout_s, tell).start()
    try:
        yield
    finally:
        watchdog.stop()
