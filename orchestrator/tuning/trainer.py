"""Starts training runs on Ray: as trials of a study, or one run with several workers.

A trial's configuration is its values by dotted field of TrainSpec, its name that of its folder
(`study.trial_name`). Trials report what `TrainingRun.advance` gives, and `folder`.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.job import JobSpec
from orchestrator.tuning.group import train_group
from search_spaces.spec import SearchSpec
from workers.adapter.manifest import read_manifest
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.run.early_stopping import WatchedMetric
from workers.run.record import Metrics, RunPlan, read_progress, reason

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

    from workers.train.task import RunTask

TELL_SECONDS = 0.5
"""How often a run's progress is looked at."""


def trial_trainable(job: JobSpec) -> Any:
    """What Ray Tune runs for each trial of the job, with the resources that it takes.

    One worker: a class for actors that Tune reuses, which keep the base model from trial to
    trial. Several: a function that runs a Ray Train group of its own.
    """
    return _in_one_actor(job) if job.train.parallel.max_workers == 1 else _in_group(job)


def fit(
    spec: TrainSpec,
    plan: RunPlan,
    search: SearchSpec | None = None,
    on_progress: Callable[[Metrics], None] | None = None,
) -> tuple[Path, Metrics]:
    """Train one adapter with `spec.parallel.workers` Ray Train workers on the connected cluster;
    returns its folder and its report.

    `search` gives each worker's CPUs and GPUs, how often the run is tried again from its last
    checkpoint, and the metric that early stopping watches. A folder that holds this very run
    already is gone on with, also by another number of workers. Raises InputError for a folder that
    holds another run, and for a run that fails (its reason is in `error.txt` too).
    """
    search = search or SearchSpec()
    _refuse_another_run(spec, plan)
    trainer = _trainer(_task(spec, plan, search), search, search.retries)
    # In a thread, because Ray Train would otherwise take over Ctrl-C for the rest of the process.
    training = _Training(trainer)
    tell = on_progress or (lambda _: None)
    told = max((report["step"] for report in read_progress(plan.folder)), default=0)
    training.start()
    while training.is_alive():
        training.join(TELL_SECONDS)
        for report in read_progress(plan.folder):
            if report["step"] > told:
                told = report["step"]
                tell(report)
    if training.error:
        raise InputError(f"training {plan.folder.name}: {_why(plan, training.error)}")
    return adapter_of(plan.folder)


def adapter_of(run: Path) -> tuple[Path, Metrics]:
    """What a run that has ended has left: the folder of its adapter, and the report of that."""
    adapter = run / "adapter"
    manifest = read_manifest(adapter)
    if manifest is None:
        raise InputError(f"{adapter}: the run has left no whole adapter")
    return adapter, manifest.metrics


class _Training(threading.Thread):
    """A Ray Train run. As a daemon it does not keep an interrupted process alive."""

    def __init__(self, trainer: "TorchTrainer") -> None:
        super().__init__(name="ray-train", daemon=True)
        self._trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        """Run to the end and keep the error, if any."""
        try:
            self._trainer.fit()
        except Exception as error:
            self.error = error


def _in_one_actor(job: JobSpec) -> Any:
    from ray import tune

    from workers.train.ray_worker import TuneWorker
    from workers.train.task import RunTask

    class Trial(TuneWorker):
        """One trial of the job in a reused actor."""

        @classmethod
        def task(cls, name: str, config: Mapping[str, Any]) -> RunTask:
            """The trial's run."""
            return trial_task(job, name, config)

    resources = {"CPU": job.search.cpus_per_worker, "GPU": job.search.gpus_per_worker}
    return tune.with_resources(Trial, tune.PlacementGroupFactory([resources]))


def _in_group(job: JobSpec) -> Any:
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        """One trial of the job, with several workers."""
        from ray.tune.integration.ray_train import TuneReportCallback

        task = trial_task(job, tune.get_context().get_trial_name(), config)
        # Tune tries a failed trial again, so Ray Train need not.
        _trainer(task, job.search, retries=0, callbacks=[TuneReportCallback()]).fit()

    # The workers' resources are Ray Train's to reserve. The function itself only waits, but Tune
    # wants a resource of every trial: a byte of memory is one that all nodes have to give.
    return tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": 1}]))


def trial_task(job: JobSpec, name: str, config: Mapping[str, Any]) -> "RunTask":
    """The run of a trial of the job, from the trial's name and configuration. InputError."""
    spec = override(job.train, config, f"trial {name}")
    folder = job.study_folder() / "trials" / name
    plan = RunPlan(folder, job.name, _number(name), shared=job.study_folder())
    return _task(spec, plan, job.search)


def _number(name: str) -> int | None:
    """The trial's number in a name such as T007."""
    digits = name.removeprefix("T")
    return int(digits) if digits.isdigit() else None


def _task(spec: TrainSpec, plan: RunPlan, search: SearchSpec) -> "RunTask":
    from orchestrator.tuning.metrics import TrainingMetrics
    from workers.train.task import RunTask

    watched = WatchedMetric(search.metric, search.mode)
    return RunTask(spec, replace(plan, watched=watched), TrainingMetrics.of)


def _trainer(
    task: "RunTask", search: SearchSpec, retries: int, callbacks: "Iterable[UserCallback]" = ()
) -> "TorchTrainer":
    """A Ray Train group for one run."""
    from functools import partial

    from workers.train.ray_worker import train_in_group

    work, search = partial(train_in_group, task), search.model_copy(update={"retries": retries})
    return train_group(work, task.spec, task.plan.folder, search, callbacks)


def _refuse_another_run(spec: TrainSpec, plan: RunPlan) -> None:
    path = plan.folder / "train.json"
    if path.exists() and not spec.same_run(TrainSpec.model_validate_json(path.read_text())):
        raise InputError(f"{plan.folder}: holds a run with another specification; name a new one")


def _why(plan: RunPlan, error: Exception) -> str:
    """The reason that a worker wrote down; a worker that was killed wrote none."""
    written = plan.folder / "error.txt"
    return written.read_text().strip() if written.exists() else reason(error)
