"""When a run's checkpoints are made, where they lie, and how a run goes on from them.

    RUN/checkpoints/step-00000040/    on the shared disk
    UPLOAD/STUDY/RUN/step-00000040/   copies, where checkpoint.upload is set

Every worker calls the same methods in the same order; the first one writes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from workers.adapter import files
from workers.adapter.folder import WriteError
from workers.config.base import InputError, validated
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.events import EventLog
from workers.run.record import RunPlan, RunRecord
from workers.train.checkpoint.best import best_adapter, bring_back_best, keep_best
from workers.train.checkpoint.state import CheckpointStore, read_state
from workers.train.checkpoint.upload import RemoteFolder, Uploads, fetched

if TYPE_CHECKING:
    from workers.train.loop import TrainingRun


class CheckpointManager:
    """Keeps the checkpoints of one run."""

    def __init__(self, spec: TrainSpec, plan: RunPlan, world: World) -> None:
        """Raises InputError for an upload to a filesystem that there is not."""
        self._run_spec, self._spec = spec, spec.checkpoint
        self._world = world
        self._record, self._log = RunRecord(plan.folder), EventLog(plan.folder)
        self._store = CheckpointStore(plan.folder / "checkpoints")
        self._place: RemoteFolder | None = None
        self._uploads: Uploads | None = None
        if self._spec.upload and world.is_first:
            self._place = RemoteFolder.of(self._spec.upload, plan.study, plan.folder.name)
            self._uploads = Uploads(self._place, self._spec.keep, self._upload_failed)

    def resume(self, run: "TrainingRun") -> None:
        """Go on from the latest whole checkpoint; begin where there is none. InputError if there
        are checkpoints, but none of this run that can be read."""
        found = self._world.gather(self._latest() if self._world.is_first else None)[0]
        if found:
            run.load(found)
        if found and run.has_best and self._world.is_first:
            bring_back_best(found, self._record)
        if found and self._uploads:
            self._uploads.put(found)

    def after_step(self, run: "TrainingRun") -> None:
        """Between two reports: make a checkpoint if one is due."""
        if self._spec.every and run.step % self._spec.every == 0:
            self._save(run)

    def after_report(self, run: "TrainingRun") -> None:
        """After an evaluation: make a checkpoint if one is due, and in any case at the end."""
        if run.step % (self._spec.every or self._run_spec.evaluation.every) == 0 or run.done:
            self._save(run)

    def finish(self) -> None:
        """Wait until the last checkpoint is uploaded; InputError if it cannot be."""
        if self._uploads:
            self._uploads.finish()

    def close(self) -> None:
        """The run ends here, perhaps before its last step."""
        if self._uploads:
            self._uploads.abandon()

    def _save(self, run: "TrainingRun") -> None:
        """A disk that is full now may have room later: only the last one must succeed."""
        state = run.state()
        if not self._world.is_first:
            return
        try:
            with self._store.written(run.step) as folder:
                run.write(folder, state)
                if run.has_best:
                    keep_best(self._record, folder)
        except (OSError, WriteError) as error:
            self._log.note("checkpoint failed", str(error), step=run.step)
            if run.done:
                raise
            return
        spare = self._uploads.reading if self._uploads else None
        self._store.prune(run.step, self._spec.keep, spare)
        if self._uploads:
            self._uploads.put(self._store.path(run.step))

    def _latest(self) -> Path | None:
        """The latest checkpoint that can be read: of ours, else of the uploaded ones. InputError
        where there are some and none can be: to begin anew would be to lose them."""
        fault = ""
        ours = self._store.whole()
        if not ours and self._place and (copied := fetched(self._place, self._store.folder)):
            ours = [copied]
        for folder in reversed(ours):
            try:
                _check(folder, self._run_spec)
            except InputError as error:
                fault = str(error)
                self._log.note("checkpoint failed", fault)
            else:
                return folder
        if ours:
            there = f" and {self._place.path}" if self._place else ""
            raise InputError(f"{fault}; to begin anew, remove {self._store.folder}{there}")
        return None

    def _upload_failed(self, why: str) -> None:
        self._log.note("upload failed", why)


def _check(folder: Path, spec: TrainSpec) -> None:
    """InputError for a checkpoint that is damaged, or of another run."""
    read_state(folder)
    manifest = files.read(folder / "adapter").manifest
    if best := best_adapter(folder):
        files.read(best)
    theirs = validated(TrainSpec, manifest and manifest.spec, str(folder))
    if not spec.same_run(theirs):
        raise InputError(f"{folder}: is of a run with another specification")
