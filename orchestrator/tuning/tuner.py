"""Runs a study: Ray Tune over the trainer, with Optuna's search, ASHA and retries."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.inventory import inventory
from cluster.placement import wait_for_room
from orchestrator.config.job import JobSpec, portable
from orchestrator.doctor.demand import trial_demand
from orchestrator.doctor.pack_room import settled_pack
from orchestrator.store.errors import StoreError
from orchestrator.tuning.events import TrialEvent
from orchestrator.tuning.lifecycle import begin, check_study, ended, locked
from orchestrator.tuning.storage import CutOff, storage, store_errors
from orchestrator.tuning.study import Study, trial_name

if TYPE_CHECKING:
    import optuna

    from orchestrator.tuning.searcher import StudySearch


Listener = Callable[[TrialEvent], None]


def run(
    job: JobSpec,
    resume: bool = False,
    on_progress: Listener | None = None,
    *,
    accept_new_data: bool = False,
) -> Study:
    """Run the job's study to its end on the connected cluster, and return it.

    `resume` goes on with a study that was cut off: what has ended is kept, the rest continues from
    its last checkpoint; with `accept_new_data` as a new study, where its rows have changed.

    Raises InputError for bad input that a trial met, which ends the study as if it was cut off, and
    for a study that exists already, that is not there to go on with, that another process runs, or
    whose job or rows were others; CutOff where the store fails on the way; ClusterError where no
    trial has room in time; KeyboardInterrupt if it was interrupted, which leaves it as after a
    kill.
    """
    job = portable(job)  # trials may run in other folders
    check_study(job, resume)
    if accept_new_data:
        from orchestrator.tuning.new_data import on_new_data

        with locked(job):
            job = on_new_data(job)
    job = settled_pack(job, inventory())
    _wait_for_room(job, resume)  # what finds none leaves nothing of a study behind
    with locked(job) as ours, storage(job.cluster, create=True) as store:
        study = begin(job, resume, store)
        with _cut_off(job):
            missing = job.search.trials - ended(study)
            if missing > 0:
                with _search(job, study, store, ours) as search:
                    _tune(job, study, search, missing, on_progress or (lambda _: None))
            if ended(study) < job.search.trials:
                raise KeyboardInterrupt
        # Optimizer states and the like: the adapters lie with the trials and in the registry.
        for states in (_tune_folder(job), *job.study_folder().glob("trials/*/checkpoints")):
            shutil.rmtree(states, ignore_errors=True)
    return Study.open(job.cluster, job.name)


@contextmanager
def _cut_off(job: JobSpec) -> Iterator[None]:
    """Where the store fails in here, the study has begun, and can be gone on with."""
    try:
        with store_errors(job.cluster):
            yield
    except StoreError as error:
        raise CutOff(f"study {job.name} was cut off: {error}") from None


@contextmanager
def _search(
    job: JobSpec,
    study: "optuna.Study",
    store: "optuna.storages.RDBStorage",
    ours: Callable[[], bool],
) -> "Iterator[StudySearch]":
    """The study's search; raises what has ended the study in place of what Tune makes of it."""
    from orchestrator.tuning.refusal import refusing
    from orchestrator.tuning.searcher import StudySearch

    search = StudySearch(job, study, store, _Registrar(job))
    with refusing(search, store.engine, ours):
        yield search


@contextmanager
def _trainable(job: JobSpec, at_once: int) -> Iterator[Any]:
    """What Tune runs for each trial, so many of them at a time."""
    from orchestrator.tuning.packs.size import pack_size

    if (size := pack_size(job)) == 1:
        from orchestrator.tuning.trainer import trial_trainable

        yield trial_trainable(job)
    else:
        from orchestrator.tuning.packs.tickets import packed

        with packed(job, size, at_once) as trainable:
            yield trainable


def _tune(
    job: JobSpec, study: "optuna.Study", search: "StudySearch", trials: int, tell: Listener
) -> None:
    from ray import tune

    from orchestrator.tuning.callbacks import StudyWatcher
    from orchestrator.tuning.metrics import StudyMetrics
    from orchestrator.tuning.scheduler import StudyScheduler

    at_once = min(job.search.max_concurrent, trials)
    tune_config = tune.TuneConfig(
        search_alg=search,
        scheduler=StudyScheduler(job, search, study),
        num_samples=trials,
        max_concurrent_trials=at_once,
        reuse_actors=job.search.pack != 1 or job.train.parallel.max_workers == 1,
        trial_name_creator=search.names,
        trial_dirname_creator=search.names,
    )
    run_config = tune.RunConfig(
        name=f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}",
        storage_path=str(_tune_folder(job)),
        failure_config=tune.FailureConfig(max_failures=job.search.retries),
        # A run keeps its own checkpoints (workers.train.checkpoint.manager).
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        callbacks=[StudyWatcher(search, (StudyMetrics(job.name), tell))],
        verbose=0,
    )
    with _trainable(job, at_once) as trainable:
        tune.Tuner(trainable, tune_config=tune_config, run_config=run_config).fit()


def _wait_for_room(job: JobSpec, resume: bool) -> None:
    """For one trial, if one is left to run; ClusterError if there is none in time."""
    import optuna

    if resume:
        with storage(job.cluster) as store:
            if ended(optuna.load_study(study_name=job.name, storage=store)) >= job.search.trials:
                return
    wait_for_room(trial_demand(job), job.search.wait_seconds)


def _tune_folder(job: JobSpec) -> Path:
    return job.study_folder() / "tune"


@dataclass(frozen=True)
class _Registrar:
    """Registers a finished trial's adapter. Tune pickles it, so it holds plain values only."""

    job: JobSpec

    def __call__(self, number: int) -> str:
        from orchestrator.registry.registry import Registry
        from orchestrator.store.connections import PATIENCE_SECONDS
        from orchestrator.tuning.trainer import adapter_of

        left = adapter_of(self.job.study_folder() / "trials" / trial_name(number))
        place = self.job.store_url(), self.job.cluster.storage
        with closing(Registry(*place, PATIENCE_SECONDS)) as registry:
            return registry.register(self.job.name, number, *left).id
