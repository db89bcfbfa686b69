"""A run in one process, from its last checkpoint to its end. It knows nothing of Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from workers.config.train import TrainSpec
from workers.models.device import settled
from workers.run.events import EventLog, read_events
from workers.run.heartbeat import HeartbeatWriter
from workers.run.record import Metrics, RunRecord
from workers.run.samples import write_samples
from workers.run.watchdog import Watchdog
from workers.train.checkpoint.manager import CheckpointManager
from workers.train.evaluation.baseline import baseline
from workers.train.loop import TrainingRun
from workers.train.task import RunTask
from workers.train.used import hold_dtype, hold_to_study, used_file


@dataclass(frozen=True)
class Attempt:
    """A run in this process, from its last checkpoint on. Both ways to start one do this alike, and
    every worker calls the same methods."""

    run: TrainingRun
    checkpoints: CheckpointManager
    record: RunRecord

    @classmethod
    def begin(cls, run: TrainingRun, record: RunRecord) -> "Attempt":
        """Make a run, just made, ready for its next step. Raises InputError."""
        try:
            _hold_to_study(run)
            run.base_metrics = baseline(run)
            checkpoints = CheckpointManager(run.spec, run.plan, run.world)
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
        return self.tell(run.metrics if ended else run.advance(self.checkpoints.after_step), ended)

    def tell(self, metrics: Metrics, ended: bool) -> Metrics:
        """Write down a report, which the run gave or, `ended` before, gives once more."""
        run = self.run
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


def in_precision(task: RunTask) -> RunTask:
    """The same in the precision that its study has, or gets from this process's device."""
    study = task.plan.shared or task.plan.folder
    return replace(task, spec=hold_dtype(study, task.spec, settled(task.spec.model)))


@contextmanager
def watched(heartbeat: HeartbeatWriter, spec: TrainSpec, record: RunRecord) -> Iterator[None]:
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
    if run.inputs.base.norms:
        log.note("norms", run.inputs.base.norms)
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
