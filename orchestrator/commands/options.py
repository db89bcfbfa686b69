"""Options and output that several commands share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import completion
from orchestrator.output import print_json

if TYPE_CHECKING:
    from orchestrator.config.job import JobSpec

Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Job file; or smoke, demo, llama8b_cluster.",
        autocompletion=completion.jobs,
    ),
]
StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="Name of the study.", autocompletion=completion.studies),
]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name that something was promoted to.",
        autocompletion=completion.names,
    ),
]
Reference = Annotated[
    str,
    typer.Argument(metavar="NAME", help="NAME or NAME@VERSION.", autocompletion=completion.names),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a study that was cut off.")]
AcceptNewData = Annotated[
    bool,
    typer.Option(
        "--accept-new-data",
        help="Go on with a study whose rows have changed, as a new study (NAME-2).",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field, as in adapter.rank=16.",
        autocompletion=completion.fields,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="MOETUNE_ADDRESS",
        help="Cluster: its Ray or dashboard address. Left out: a local one.",
    ),
]
Storage = Annotated[
    str,
    typer.Option(envvar="MOETUNE_STORAGE", help="Folder with studies and adapter versions."),
]
JobStorage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="MOETUNE_STORAGE",
        help="Folder for studies and adapter versions, instead of the job's.",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        help="SQLAlchemy URL without a password. Left out: that of MOETUNE_STORE, which may have "
        "one, or SQLite in the storage."
    ),
]
MovedBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="PATH",
        envvar="MOETUNE_BASE",
        help="Where the version's base model is now, if its folder was moved.",
    ),
]
Rows = Annotated[int, typer.Option(min=1, help="Take so many rows of each task.")]
Url = Annotated[str, typer.Option(envvar="MOETUNE_URL", help="The endpoint.")]
Ca = Annotated[str | None, typer.Option(metavar="FILE", help="Certificates to trust, for https.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the name's history.")]

DEFAULT_STORAGE = "runs"
DEFAULT_URL = "http://127.0.0.1:8000"


def job_spec(job: str, assignments: Sequence[str] | None, options: Mapping[str, str | None]) -> Any:
    """A job file's job with the options that name a part of its cluster (None: not given), and
    what --set assigns."""
    from orchestrator.config.job import load_job

    given = {f"cluster.{field}": value for field, value in options.items() if value is not None}
    return load_job(job, assignments or (), given)


def study_job(
    job: str, assignments: Sequence[str] | None, options: Mapping[str, str | None]
) -> Any:
    """`job_spec` of a job whose rows and model are needed: those of `smoke` are made."""
    from orchestrator.config.job import comes_along
    from orchestrator.demo.smoke import JOB, with_its_files

    spec = job_spec(job, assignments, options)
    return with_its_files(spec) if job == JOB and comes_along(job) else spec


def cluster_spec(storage: str, store: str | None, address: str | None = None) -> Any:
    """The part of a job that says where studies and versions lie; a missing folder is an error."""
    from orchestrator.config.cluster import ClusterSpec
    from workers.config.base import InputError, validated

    values = {"storage": storage, "store": store, "address": address}
    cluster = validated(ClusterSpec, values, "--store")
    if not cluster.named_store and not Path(storage).is_dir():
        raise InputError(f"--storage {storage}: no such folder; run `moetune tune` first")
    return cluster


def registry(storage: str, store: str | None) -> Any:
    """The registry of a storage folder."""
    from orchestrator.registry.registry import Registry

    spec = cluster_spec(storage, store)
    return Registry(spec.store_url(), Path(spec.storage).resolve())


def names_a_folder(what: str, storage: str, store: str | None) -> bool:
    """Whether an adapter's folder is meant, and not a name of the registry: that goes before a
    folder that is called the same."""
    if "/" in what or not Path(what).is_dir():
        return "/" in what
    return not Path(storage).is_dir() or what not in registry(storage, store).names()


def send(
    spec: "JobSpec", address: str, resume: bool, *, accept_new_data: bool, as_json: bool
) -> None:
    """Run a job as a Ray Job of a cluster; says where to watch it."""
    from cluster.jobs import JobClient
    from orchestrator.tuning.submit import submit

    cluster = JobClient(address)
    job_id = submit(cluster, spec, resume, accept_new_data=accept_new_data)
    if as_json:
        print_json({"id": job_id, "study": spec.name, "dashboard": cluster.dashboard_url})
    else:
        print(f"submitted {job_id} (study {spec.name}); dashboard {cluster.dashboard_url}")


def client(url: str, ca: str | None) -> Any:
    """A client of an endpoint. Its key is read from MOETUNE_API_KEY."""
    from orchestrator.auth.operator_key import read_key
    from orchestrator.client import Client

    return Client(url, read_key(), ca)
