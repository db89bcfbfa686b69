"""The train loop's two ways to start on Ray. Only this and `ray_process_group` know Ray here.

A trial of one worker runs in a Tune actor that goes from trial to trial and keeps the base model
loaded. A run of several workers is a Ray Train group, which is started again after a failure and
goes on from its last checkpoint, and costs ten times as much to start.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray.train
from ray.tune import Trainable

from workers.config.train import TrainSpec
from workers.models.device import settled
from workers.parallel.world import World
from workers.run.events import EventLog, read_events
from workers.run.heartbeat import HeartbeatWriter
from workers.run.record import Metrics, Observer, RunPlan, RunRecord
from workers.run.samples import write_samples
from workers.run.watchdog import Watchdog
from workers.train.checkpoint.manager import CheckpointManager
from workers.train.evaluation.baseline import baseline
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.used import hold_dtype, hold_to_study, used_file

MakeObserver = Callable[[RunPlan], Observer]
"""Called once for each run, in the process of its first worker."""


@dataclass(frozen=True)
class RunTask:
    """One run, as it is sent to the workers."""

    spec: TrainSpec
    plan: RunPlan
    make_observer: MakeObserver | None = None

    def record(self) -> RunRecord:
        """The run's files, with its observer."""
        return RunRecord(self.plan.folder, self.make_observer and self.make_observer(self.plan))

    def in_precision(self) -> "RunTask":
        """The same in the precision that its study has, or gets from this process's device."""
        study = self.plan.shared or self.plan.folder
        return replace(self, spec=hold_dtype(study, self.spec, settled(self.spec.model)))


def train_in_group(task: RunTask) -> None:
    """What a TorchTrainer runs in each of its workers."""
    world = World.current()
    record = task.record() if world.is_first else RunRecord(task.plan.folder)
    if world.is_first:
        record.begin(task.spec)
    world.barrier()
    heartbeat = HeartbeatWriter(world.rank, world.size).write(record.folder, record.observe)
    with _watched(heartbeat, task.spec, record):
        attempt = Attempt.begin(task.in_precision(), record, heartbeat)
        ray.train.report(attempt.next_report())
        while not attempt.run.done:
            ray.train.report(attempt.next_report())
        attempt.finish()
        attempt.close()


@dataclass(frozen=True)
class Attempt:
    """A run in this process, from its last checkpoint on. Both ways to start one do this alike, and
    every worker calls the same methods."""

    run: TrainingRun
    checkpoints: CheckpointManager
    record: RunRecord

    @classmethod
    def begin(
        cls,
        task: RunTask,
        record: RunRecord,
        heartbeat: HeartbeatWriter,
        inputs: Inputs | None = None,
    ) -> "Attempt":
        """Make the run ready for its next step. Raises InputError."""
        run = TrainingRun(task.spec, task.plan, inputs=inputs, heartbeat=heartbeat)
        try:
            _hold_to_study(run)
            run.base_metrics = baseline(run)
            checkpoints = CheckpointManager(task.spec, task.plan, run.world)
            checkpoints.resume(run)
        except BaseException:
            run.close()
            raise
        if run.world.is_first:
            _begin(run, record)
        return cls(run, checkpoints, record)

    def next_report(self) -> Metrics:
        """Train to the next report. Its adapter, its figures and the checkpoint that is due are on
        the disk before anybody hears of it; so a run that ended just before it could say so says it
        again."""
        run, ended = self.run, self.run.done
        metrics = run.metrics if ended else run.advance(self.checkpoints.after_step)
        if run.is_best:
            run.save_adapter(self.record.adapter)
        if run.world.is_first:
            if run.is_best:
                write_samples(self.record.samples, run.samples)
            self.record.add(metrics)
        if not ended:
            self.checkpoints.after_report(run)
        run.heartbeat.beat("report")
        return {**metrics, "folder": str(self.record.folder)}

    def finish(self) -> None:
        """The run is done: wait for the last upload. InputError where it cannot be made."""
        self.checkpoints.finish()
        run = self.run
        if run.world.is_first:
            early = run.step < run.steps
            why = f"stopped early: {run.patience}" if early else "all steps are done"
            EventLog(self.record.folder).note("finished", why, step=run.step)

    def close(self) -> None:
        """Take the adapter off the base model; the run may be cut off."""
        self.checkpoints.close()
        self.run.close()


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
        with _watched(attempt.run.heartbeat, attempt.run.spec, attempt.record):
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
        with _watched(heartbeat, task.spec, record):
            task = task.in_precision()
            self._inputs = Inputs.load(task.spec, self._inputs)
            self._attempt = Attempt.begin(task, record, heartbeat, self._inputs)
        return self._attempt


def _hold_to_study(run: TrainingRun) -> None:
    """Refuse rows or a base that other trials of the study did not have."""
    if run.plan.shared and run.world.is_first:
        hold_to_study(used_file(run.plan.shared, run.spec), run.inputs.used)


def _begin(run: TrainingRun, record: RunRecord) -> None:
    """Take back what was reported after the checkpoint, and say that an attempt begins."""
    record.specify(run.spec)
    record.go_on(run.step - 1 if run.done else run.step)  # what ended says so again
    again = bool(read_events(record.folder))
    many = "1 worker" if run.world.size == 1 else f"{run.world.size} workers"
    where = f"after step {run.step} of {run.steps} with {many}"
    log = EventLog(record.folder)
    log.note("resumed" if again else "started", where, step=run.step)
    if run.inputs.base.attention:
        log.note("attention", run.inputs.base.attention.words)
    if run.compiled:
        log.note("compile", run.compiled.words)
    for counts in (run.train_counts, run.inputs.validation_counts):
        if counts.losses() or counts.layouts:
            log.note("data", str(counts))
    if same := run.inputs.same_rows:
        log.note("data", str(same))
    if run.exchange:
        record.exchange(asdict(run.exchange))
        log.note("exchange", run.exchange.words)


@contextmanager
def _watched(heartbeat: HeartbeatWriter, spec: TrainSpec, record: RunRecord) -> Iterator[None]:
    """End this process if it hangs inside the block. Why it did, or failed, is left in the run's
    files."""

    def tell(why: str) -> None:
        EventLog(record.folder).note("hung", why, worker=heartbeat.rank)
        record.failed(why)

    watchdog = Watchdog(heartbeat, record.folder, spec.parallel.hang_timeout_s, tell).start()
    try:
        with record.failure_kept():
            yield
    finally:
        watchdog.stop()
