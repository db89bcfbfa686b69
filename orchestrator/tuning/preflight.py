"""What can be known to go wrong before a cluster starts. Everything here raises InputError."""

import difflib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.job import JobSpec
from orchestrator.doctor.demand import too_small_here
from orchestrator.tuning.lifecycle import check_data_same, check_study
from orchestrator.tuning.packs.size import check_pack
from orchestrator.tuning.run_length import check_warmup
from orchestrator.tuning.storage import database_file, study_names
from workers.config.attention import check_attention_here
from workers.config.base import InputError
from workers.config.metrics import better_when, reported
from workers.config.optimizers import check_gpu, check_installed
from workers.run.folders import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.config.train import TrainSpec
    from workers.data.counts import RowCounts
    from workers.data.store.token_store import Tell
    from workers.models.compatibility import Fit

MINIMUM_FREE_BYTES = 256 * 2**20


def preflight(
    job: JobSpec,
    resume: bool | None = None,
    tell: "Tell" = lambda *_: None,
    *,
    accept_new_data: bool = False,
) -> "dict[str, RowCounts]":
    """Check a job's space, metric, files, base model and data as far as a driver can; with
    `resume` given, also that the study can be begun (False) or gone on with (True) here, on the
    rows that it began with unless new ones are accepted.

    Returns what encoding does to the `train` and `validation` rows; `tell` hears how far it is.
    """
    job.search_space()
    check_pack(job)
    if resume is not None and (short := too_small_here(job)):
        raise InputError(short)
    check_storage(job)
    _check_database(job)
    if resume is not None:
        check_study(job, resume)
    if resume and not accept_new_data:
        check_data_same(job)
    _check_mode(job)
    _check_upload(job)
    return _check_model_and_data(job, tell)


def remarks(job: JobSpec) -> list[str]:
    """What is allowed, and most likely not meant, in one line each."""
    shapes = [trial.adapter for trial in job.search_space().samples()]
    blind = {(one.strategy.slots, one.fewest_slots) for one in shapes if one.selects_nothing}
    return [_selects_nothing(*one) for one in sorted(blind, key=str)]


def _selects_nothing(slots: int | str | None, experts: int) -> str:
    """`slots` as in the strategy's entry of the table."""
    named = isinstance(slots, str)
    what = f"adapter.{slots} {experts}" if named else f"a strategy that takes {experts}"
    advice = f" (in a space, below: adapter.num_experts keeps {slots} smaller)" if named else ""
    return (
        f"{what} of {experts} experts, which a trial may have, sends every token to all of them: "
        f"such a router selects nothing{advice}"
    )


def check_storage(job: JobSpec) -> None:
    """InputError unless the storage folder can be made and written, with room."""
    where = f"cluster.storage: {job.cluster.storage}"
    if "://" in job.cluster.storage:
        raise InputError(f"{where}: is a URL; give a folder that all nodes see")
    place = nearest(Path(job.cluster.storage))
    if not place.is_dir():
        raise InputError(f"{where}: {place} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        raise InputError(f"{where}: cannot be written: {error.strerror}") from None
    if free < MINIMUM_FREE_BYTES:
        raise InputError(
            f"{where}: the disk is full: {free >> 20} MiB free, wanted are "
            f"{MINIMUM_FREE_BYTES >> 20} MiB"
        )


def _check_database(job: JobSpec) -> None:
    """The database can be opened, or made where it is to lie; nothing is made here."""
    file = database_file(job.cluster)
    if file is None or file.exists():
        study_names(job.cluster)
    elif job.cluster.named_store:
        try:
            with tempfile.TemporaryFile(dir=file.parent):
                pass
        except OSError as error:
            raise InputError(
                f"cluster.store {job.cluster.shown_store()}: cannot be used: {error.strerror}"
            ) from None


def _check_upload(job: JobSpec) -> None:
    """Checkpoints can be copied to where they are to be."""
    if job.train.checkpoint.upload:
        from workers.train.checkpoint.upload import RemoteFolder

        RemoteFolder.of(job.train.checkpoint.upload).try_out()


def _check_mode(job: JobSpec) -> None:
    wanted = better_when(job.search.metric)
    if wanted and wanted != job.search.mode:
        raise InputError(
            f"search.mode: {job.search.metric} is better when it is "
            f"{'smaller' if wanted == 'min' else 'larger'}: write mode: {wanted}"
        )


def _check_model_and_data(job: JobSpec, tell: "Tell") -> "dict[str, RowCounts]":
    """The quick checks first: a large source takes minutes."""
    from workers.data.encode import Encoder
    from workers.data.survey import Survey
    from workers.data.task_metrics import check_tasks
    from workers.models.base import check_base
    from workers.models.compatibility import check_fit, check_packable
    from workers.models.vocabulary import with_token_ids

    tokenizer = check_base(job.train.model)
    trials = [with_token_ids(trial, tokenizer) for trial in job.search_space().samples()]
    _check_optimizers(job, trials)
    _check_attention(job, trials)
    fit = check_fit(job.train, (trial.adapter for trial in trials))
    _check_start(job, trials)
    if job.train.data.packing:
        check_packable(job.train.model)
    _check_metric(job, trials, fit)
    sources = dict.fromkeys((job.train.data, *(trial.data for trial in trials)))
    for data in sources:
        check_tasks(data)
    surveys = {data: Survey(Encoder(tokenizer, data), tell) for data in sources}
    train = {data: one.training() for data, one in surveys.items()}  # trials may have their own
    check_warmup(job, train)
    own = job.train.data
    validation = surveys[own].validation(job.train.evaluation.rows_per_task)
    return {"train": train[own], "validation": validation}


def _check_optimizers(job: JobSpec, trials: "Sequence[TrainSpec]") -> None:
    """Those that the trials name must run on the workers, as far as is known here."""
    for name in dict.fromkeys(trial.optimizer.name for trial in trials):
        check_installed(name)
        check_gpu(name, has_gpu=job.search.gpus_per_worker > 0)


def _check_attention(job: JobSpec, trials: "Sequence[TrainSpec]") -> None:
    """The way that the trials name must run on the workers, as far as is known here."""
    from workers.models.attention_choice import check_family
    from workers.models.compatibility import base_config

    for model in dict.fromkeys(trial.model for trial in trials):
        check_attention_here(model.attention, has_gpu=job.search.gpus_per_worker > 0)
        if model.attention != "auto":
            check_family(model, base_config(model))


def _check_start(job: JobSpec, trials: "Sequence[TrainSpec]") -> None:
    """Every trial can begin with the adapter that the job names. Whether its base is the same, only
    a loaded one says."""
    from workers.adapter import files
    from workers.train.start import check_shape

    if job.train.start_from:
        start = files.read(job.train.start_from)
        for trial in trials:
            check_shape(start, trial)


def _check_metric(job: JobSpec, trials: "Sequence[TrainSpec]", fit: "Fit") -> None:
    """Every trial will report the metric: it is looked up among what they report for this data."""
    metric = job.search.metric
    lacking = [trial for trial in trials if metric not in reported(trial)]
    tasks = _tasks(job) if lacking else []
    lacking = [t for t in lacking if metric not in reported(t, tasks, fit.routers(t.adapter))]
    if not lacking:
        return
    if len(lacking) < len(trials):
        weights = lacking[0].loss.enabled()
        raise InputError(
            f"search.metric: {metric}: not every trial reports it: not one with adapter."
            f"num_experts {lacking[0].adapter.num_experts} and weights of losses {weights}"
        )
    routers = fit.routers(trials[0].adapter)
    close = difflib.get_close_matches(metric, reported(trials[0], tasks, routers), n=1)
    hint = f"trials report {', '.join(reported(trials[0], tasks, routers[:1]))}"
    hint = f"did you mean {close[0]}?" if close else hint
    raise InputError(f"search.metric: {metric}: no such metric; {hint}")


def _tasks(job: JobSpec) -> list[str]:
    """Those of the validation rows."""
    from workers.data.rows import validation_rows

    return sorted({row.task for row in validation_rows(job.train.data)})
