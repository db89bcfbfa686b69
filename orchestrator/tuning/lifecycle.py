"""Beginning a study, or going on with one: what is refused, and what is noted in its storage."""

import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, dump_job, portable
from orchestrator.tuning.storage import storage, store_errors, study_names
from orchestrator.tuning.study_folder import check_folder, take_folder
from workers.config.base import InputError, validated
from workers.run.files import write_text
from workers.train.used import check_same_data, read_used, used_file

if TYPE_CHECKING:
    import optuna

    from orchestrator.tuning.study import Study

_LOOK_SECONDS = 1.0
"""Who looks whether a study has a driver holds its lock for a moment."""
SUCCESSOR = "goes_on_in"
"""Note of a study that goes on as a new one, and of each trial that was moved: the new name."""
# What may differ between a study's first start and going on with it.
_MAY_CHANGE = (
    "train.data.processes",
    "train.model.attention",
    "train.model.compile",
    "cluster",
    "serve",
    "search.trials",
    "search.max_concurrent",
    "search.pack",
    "search.cpus_per_worker",
    "search.gpus_per_worker",
    "search.retries",
    "search.wait_seconds",
    "search.repeat",
    "train.checkpoint",
    "train.evaluation.samples",
    "train.parallel.hang_timeout_s",
    "train.parallel.threads",
)


def check_study(job: JobSpec, resume: bool) -> None:
    """Raise InputError for a new study that exists already, for one to go on with that is not
    there, or whose job was another, and for one whose folder is another store's. Writes nothing."""
    import optuna

    where = job.cluster.storage
    if not resume:
        if job.name in study_names(job.cluster):
            raise InputError(
                f"study {job.name}: exists already in {where}; go on with it by --resume, or give "
                "the job another name (--set name=NAME)"
            )
        return check_folder(job.study_folder(), None)
    with storage(job.cluster) as store:
        known = sorted(optuna.get_all_study_names(store))
        if job.name not in known:
            raise InputError(
                f"study {job.name}: nothing to go on with in {where}; there is "
                f"{', '.join(known) or 'no study yet'}"
            )
        study = optuna.load_study(study_name=job.name, storage=store)
        check_folder(job.study_folder(), study)
        return _check_same(job, study)


def check_data_same(job: JobSpec) -> None:
    """InputError where a study's rows are no longer those that its trials began with."""
    from workers.data.sources.records import data_digest

    job = portable(job)  # as its trials name their sources
    if before := read_used(used_file(job.study_folder(), job.train)):
        check_same_data(before, data_digest(job.train.data), f"study {job.name}")


def begin(job: JobSpec, resume: bool, store: "optuna.storages.RDBStorage") -> "optuna.Study":
    """The study in Optuna's storage, made if it is new, with its job noted in it and beside it."""
    import optuna

    if not resume:
        check_folder(job.study_folder(), None)
    study = optuna.create_study(
        study_name=job.name,
        storage=store,
        direction="minimize" if job.search.mode == "min" else "maximize",
        load_if_exists=resume,
    )
    take_folder(job.study_folder(), study)
    with warnings.catch_warnings():  # Optuna calls it experimental; optuna-dashboard shows it
        warnings.simplefilter("ignore")
        study.set_metric_names([job.search.metric])
    noted = portable(job)
    study.set_user_attr("varied", job.search_space().varied())
    study.set_user_attr("job", _facts(noted))
    if "began" not in study.user_attrs:
        study.set_user_attr("began", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    write_text(job.study_folder() / "job.json", dump_job(noted), durable=True)
    return study


@contextmanager
def locked(job: JobSpec) -> Iterator[Callable[[], bool]]:
    """Keep other processes, on any machine, from running the same study of the store; it lets go
    when we die. What is yielded says whether it is still ours, to be asked after a restart of the
    store's server."""
    from orchestrator.store.lock import Held, store_lock

    with store_errors(job.cluster), ExitStack() as stack:
        try:
            lock = store_lock(job.store_url(), _lock_name(job.name), _LOOK_SECONDS)
            take = stack.enter_context(lock)
        except Held:
            raise InputError(f"study {job.name}: another process is running it") from None
        yield take


@contextmanager
def idle(cluster: ClusterSpec, study: str) -> Iterator[bool]:
    """Whether no process, on any machine, runs the study; then none will until the block ends."""
    from orchestrator.store.lock import Held, store_lock

    with ExitStack() as stack:
        try:
            with store_errors(cluster):
                stack.enter_context(store_lock(cluster.store_url(), _lock_name(study)))
        except Held:
            yield False
        else:
            yield True


def has_driver(cluster: ClusterSpec, study: str) -> bool:
    """Whether a process, on any machine, runs the study."""
    with idle(cluster, study) as nobody:
        return not nobody


def ended(study: "optuna.Study") -> int:
    """How many of its trials have ended, well or not."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def resume_command(study: "Study", cluster: ClusterSpec) -> str | None:
    """How to go on with a study that has trials left and no driver; None for any other."""
    moved = SUCCESSOR in study.optuna.user_attrs
    if (
        moved
        or ended(study.optuna) >= study.job["search"]["trials"]
        or has_driver(cluster, study.name)
    ):
        return None
    search = study.job["search"]
    command = "train" if search["space"] is None and search["trials"] == 1 else "tune"
    return shlex.join(["moetune", command, str(study.folder / "job.json"), "--resume"])


def _lock_name(study: str) -> str:
    return f"study-{study}"


def _check_same(job: JobSpec, study: "optuna.Study") -> None:
    before = study.user_attrs.get("job")
    if before is None:  # killed in its very first moment, before it noted anything
        return
    with suppress(InputError):  # an earlier moetune's has not the fields of today
        before = validated(JobSpec, before, job.name).model_dump(mode="json")
    differences = list(_differences(before, _facts(portable(job))))
    if differences:
        raise InputError(
            f"study {job.name}: cannot go on with another job: {'; '.join(differences[:5])}"
        )


def _facts(noted: JobSpec) -> dict[str, Any]:
    """A portable job as it is noted, to mean the same tomorrow and elsewhere: a preset or file may
    have changed then, and a relative path be another one."""
    return noted.model_dump(mode="json")


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if path in _MAY_CHANGE:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            below = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key), now.get(key), below)
    elif before != now:
        yield f"{path} is {_shown(now)}, was {_shown(before)}"


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
