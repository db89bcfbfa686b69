"""Commands on studies: check, report, demo."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    Assignments,
    Job,
    JobStorage,
    Storage,
    Store,
    StudyName,
    cluster_spec,
    study_job,
)
from orchestrator.output import print_json

if TYPE_CHECKING:
    from cluster.inventory import Inventory
    from orchestrator.config.job import JobSpec

app = typer.Typer()


@app.command()
def check(
    job: Job,
    set_: Assignments = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="MOETUNE_ADDRESS",
            help="Cluster that it is to run on: what the job wants is compared with its nodes.",
        ),
    ] = None,
    storage: JobStorage = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the base here and time a few steps.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a job and all of its rows without running it; print it with every default written out,
    and tell what its rows lose to data.max_length, its epochs, and about how much memory a worker
    takes. Paths in a job, a SQLite store's too, begin at its folder."""
    from orchestrator.config.job import dump_job, portable
    from orchestrator.monitoring.console import rows_progress
    from orchestrator.report.estimate import job_estimate
    from orchestrator.tuning.preflight import preflight, remarks

    spec = study_job(job, set_, {"storage": storage})
    there, room = _there(spec, address)
    with rows_progress() as tell:
        counts = preflight(spec, tell=tell)
    with redirect_stdout(sys.stderr):  # libraries that are loaded with a model say so there
        estimate = job_estimate(spec, there, measure=measure)
    said = [*remarks(spec), *room]
    spec = portable(spec)  # what is printed may go into a file in another folder
    if as_json:
        data = {name: one.as_dict() for name, one in counts.items()}
        values = {"job": spec.model_dump(mode="json"), "data": data, "remarks": said}
        return print_json(values | estimate.as_dict())
    print(dump_job(spec), end="", flush=True)
    # Beside the job, which may go into a file.
    for one in (*counts.values(), *estimate.lines(), *said):
        print(one, file=sys.stderr)
    return None


@app.command()
def report(
    study: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Write the study's report: one HTML page that needs no network."""
    from orchestrator.report.report import write

    spec = cluster_spec(storage, store)
    path = write(spec, study)
    if as_json:
        return print_json({"report": path})
    return print(path)


@app.command()
def demo(
    storage: Annotated[
        Path, typer.Option(envvar="MOETUNE_STORAGE", help="Folder for everything the demo makes.")
    ] = Path("runs/demo"),
    set_: Assignments = None,
) -> None:
    """Teach a small model to drive a smart home: tune, train on, promote, serve, ask."""
    from orchestrator.demo.run import run_demo

    run_demo(storage, set_ or ())


def _there(job: "JobSpec", address: str | None) -> "tuple[Inventory, list[str]]":
    """The cluster's nodes, and how the job goes with them; without a cluster this machine, and
    whether it is too small."""
    from cluster.jobs import JobClient
    from orchestrator.doctor.demand import room_for, this_machine, too_small_here

    if address is None:
        short = too_small_here(job)
        said = [f"{short}; a cluster is looked at by check --address"] if short else []
        return this_machine(job), said
    client = JobClient(address)
    there = client.nodes()
    return there, list(room_for(job, there, client.grows))
