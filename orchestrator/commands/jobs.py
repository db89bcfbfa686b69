"""Commands on a cluster's jobs: submit, logs, stop; and doctor."""

import sys
from typing import Annotated

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    AcceptNewData,
    Address,
    AsJson,
    Assignments,
    Job,
    JobStorage,
    Resume,
    Storage,
    send,
    study_job,
)
from orchestrator.output import print_json, print_table

app = typer.Typer()
Id = Annotated[
    str, typer.Argument(metavar="NAME", help="The job's id, or its study's name: its latest job.")
]


@app.command()
def submit(
    job: Job,
    address: Address = None,
    set_: Assignments = None,
    resume: Resume = False,
    accept_new_data: AcceptNewData = False,
    storage: JobStorage = None,
    as_json: AsJson = False,
) -> None:
    """Send a job and the code to a cluster as a Ray Job, and return at once."""
    spec = study_job(job, set_, {"storage": storage})
    where = address or spec.cluster.address or "auto"
    send(spec, where, resume, accept_new_data=accept_new_data, as_json=as_json)


@app.command()
def logs(
    id_: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    address: Address = None,
) -> None:
    """Print what a job has printed."""
    from cluster.jobs import JobClient

    client = JobClient(address or "auto")
    job = client.find(id_)
    if not follow:
        return print(client.logs(job.id), end="")
    for piece in client.follow(job.id):
        print(piece, end="", flush=True)
    return None


@app.command()
def stop(id_: Id, address: Address = None) -> None:
    """Ask a job to end; its study can be gone on with."""
    from cluster.jobs import JobClient

    client = JobClient(address or "auto")
    job = client.find(id_)
    print(f"{job.id} {'is stopping' if client.stop(job.id) else 'had ended already'}")


@app.command()
def doctor(
    address: Address = None, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False
) -> None:
    """Check Python, packages, devices, disk and storage here; with --address also whether the
    cluster lets us in, and what each of its nodes can run."""
    from orchestrator.doctor.doctor import checks

    if address:
        print("a job looks at the cluster's nodes; this takes a minute", file=sys.stderr)

    results = checks(address, storage)
    if as_json:
        print_json([vars(check) for check in results])
    else:
        rows = [("ok" if check.ok else "FAILED", check.name, check.detail) for check in results]
        print_table(("", "check", "detail"), rows)
    if not all(check.ok for check in results):
        raise typer.Exit(1)
