"""Beginning a study, or going on with one: what is refused, and what is noted in its storage."""

import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.spec import JobSpec, dump_job, override_job, portable
from orchestrator.storage import database_file, storage
from workers.spec import InputError
from workers.train.record import write_text
from workers.train.used import check_same_data, read_used, used_file

if TYPE_CHECKING:
    import optuna

# What may differ between a study's first start and going on with it.
_MAY_CHANGE = (
    "cluster",
    "serve",
    "search.trials",
    "search.max_concurrent",
    "search.cpus_per_worker",
    "search.gpus_per_worker",
    "search.retries",
    "train.checkpoint",
    "train.parallel.hang_timeout_s",
    "train.parallel.threads",
)


def check_study(job: JobSpec, resume: bool) -> None:
    """Raise InputError for a new study that exists already, for one to go on with that is not
    there, or whose job was another. Writes nothing."""
    import optuna

    if not resume and not _database(job):
        return
    with storage(job.cluster) as store:
        known = sorted(optuna.get_all_study_names(store))
        if resume and job.name not in known:
            raise InputError(
                f"study {job.name}: nothing to go on with in {job.cluster.storage}; there is "
                f"{', '.join(known) or 'no study yet'}"
            )
        if not resume and job.name in known:
            raise InputError(
                f"study {job.name}: exists already in {job.cluster.storage}; go on with it by "
                "--resume, or give the job another name (--set name=NAME)"
            )
        if resume:
            _check_same(job, optuna.load_study(study_name=job.name, storage=store))


def check_data_same(job: JobSpec) -> None:
    """InputError where a study's rows are no longer those that its trials began with."""
    from workers.data.source import data_digest

    job = portable(job)  # as its trials name their sources
    if before := read_used(used_file(job.study_folder(), job.train)):
        check_same_data(before, data_digest(job.train.data), f"study {job.name}")


def begin(job: JobSpec, resume: bool, store: "optuna.storages.RDBStorage") -> "optuna.Study":
    """The study in Optuna's storage, made if it is new, with its job noted in it and beside it."""
    import optuna

    study = optuna.create_study(
        study_name=job.name,
        storage=store,
        direction="minimize" if job.search.mode == "min" else "maximize",
        load_if_exists=resume,
    )
    with warnings.catch_warnings():  # Optuna calls it experimental; optuna-dashboard shows it
        warnings.simplefilter("ignore")
        study.set_metric_names([job.search.metric])
    study.set_user_attr("varied", job.search_space().varied())
    study.set_user_attr("job", _facts(job))
    if "began" not in study.user_attrs:
        study.set_user_attr("began", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    write_text(job.study_folder() / "job.json", dump_job(_noted(job)))
    return study


@contextmanager
def locked(job: JobSpec) -> Iterator[None]:
    """Keep other processes from running the same study; the system lets go when we die."""
    job.study_folder().mkdir(parents=True, exist_ok=True)
    with open(job.study_folder() / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"study {job.name}: another process is running it") from None
        yield


def _database(job: JobSpec) -> bool:
    """Whether there is a database to look into."""
    file = database_file(job.cluster)
    return file is None or file.exists()


def _check_same(job: JobSpec, study: "optuna.Study") -> None:
    before = study.user_attrs.get("job")
    if before is None:  # killed in its very first moment, before it noted anything
        return
    differences = list(_differences(before, _facts(job)))
    if differences:
        raise InputError(
            f"study {job.name}: cannot go on with another job: {'; '.join(differences[:5])}"
        )


def _noted(job: JobSpec) -> JobSpec:
    """The job as it is written down, to mean the same tomorrow and elsewhere: a preset or file may
    have changed then, and a relative path be another one. A password is left out."""
    import sqlalchemy as sa

    noted = portable(job)
    if noted.cluster.store is None:
        return noted
    shown = sa.make_url(noted.cluster.store).render_as_string(hide_password=True)
    return override_job(noted, {"cluster.store": shown}, f"job {job.name}")


def _facts(job: JobSpec) -> dict[str, Any]:
    return _noted(job).model_dump(mode="json")


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
