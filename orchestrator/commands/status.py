"""`moetune status`: what goes on, in a storage folder or on a cluster."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import completion
from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    Address,
    AsJson,
    Storage,
    Store,
    cluster_spec,
)
from orchestrator.monitoring.format import duration
from orchestrator.output import print_json, print_table

if TYPE_CHECKING:
    from cluster.jobs import Job, JobClient
    from orchestrator.monitoring.status import StudyStatus

app = typer.Typer()
_FRESH_SECONDS = 30.0
_COLUMNS = ("id", "study", "state", "started", "message")


@app.command()
def status(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A study, or a job's id. Left out: all jobs.",
            autocompletion=completion.studies,
        ),
    ] = None,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a study or job is: steps, loss, speed, time left, and workers that hang.

    A study is looked for in the storage folder; with --address first among the cluster's jobs.
    """
    from cluster.errors import ClusterError
    from cluster.jobs import JobClient
    from orchestrator.config.cluster import ClusterSpec
    from workers.config.base import InputError

    here = name if name and ClusterSpec(storage=storage).study_folder(name).is_dir() else None
    if here and not address:
        return _show_study(here, storage, store, as_json)
    try:
        client = JobClient(address or "auto")
    except ClusterError as error:
        if address or not name:
            raise
        raise InputError(
            f"{name}: no study in {storage}; jobs cannot be asked for: {error}"
        ) from None
    if name is None:
        return _show_jobs(client, as_json)
    try:
        job = client.find(name)
    except ClusterError:
        if not here:
            raise
        return _show_study(here, storage, store, as_json)
    return _show_job(client, job, as_json)


def _show_study(name: str, storage: str, store: str | None, as_json: bool) -> None:
    from orchestrator.monitoring.status import status_from_outside
    from orchestrator.tuning.study import Study

    place = cluster_spec(storage, store)
    now = status_from_outside(Study.open(place, name), place)
    if as_json:
        return print_json(now.model_dump(mode="json"))
    return print("\n".join(now.lines()))


def _show_jobs(client: "JobClient", as_json: bool) -> None:
    jobs = [
        (job, _progress(client, job) if job.state == "RUNNING" else None) for job in client.list()
    ]
    if as_json:
        return print_json([_facts(job, now) for job, now in jobs])
    print_table(_COLUMNS, [_row(job) for job, _ in jobs])
    for job, now in jobs:
        if now:
            print("", f"{job.id}:", *now.lines(), sep="\n")
    return None


def _show_job(client: "JobClient", job: "Job", as_json: bool) -> None:
    now = _progress(client, job)
    if as_json:
        return print_json(_facts(job, now))
    print_table(_COLUMNS, [_row(job)])
    if now:
        print("", *now.lines(), sep="\n")
        if job.state == "RUNNING" and (age := time.time() - now.at) > _FRESH_SECONDS:
            print(f"(its driver said so {duration(age)} ago, and nothing since)")
    return None


def _progress(client: "JobClient", job: "Job") -> "StudyStatus | None":
    """What the job's driver said last; None before that, or if it was another version of ours."""
    from pydantic import ValidationError

    from orchestrator.monitoring.status import StudyStatus

    note = client.note(job)
    try:
        return StudyStatus.model_validate_json(note) if note else None
    except ValidationError:
        return None


def _facts(job: "Job", now: "StudyStatus | None") -> dict[str, Any]:
    return {**vars(job), "progress": now and now.model_dump(mode="json")}


def _row(job: "Job") -> tuple[Any, ...]:
    return job.id, job.metadata.get("study"), job.state, _time(job.started), job.message


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
