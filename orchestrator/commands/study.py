"""Commands on studies: check, tune, leaderboard, report, demo."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Store,
    StudyName,
    cluster_spec,
    study_job,
)
from orchestrator.output import print_json, print_table

if TYPE_CHECKING:
    from orchestrator.config.job import JobSpec
    from orchestrator.tuning.study import Study, TrialRow

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
    room = _room(spec, address)
    with rows_progress() as tell:
        counts = preflight(spec, tell=tell)
    with redirect_stdout(sys.stderr):  # libraries that are loaded with a model say so there
        estimate = job_estimate(spec, measure=measure)
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
def tune(
    job: Job,
    set_: Assignments = None,
    resume: Resume = False,
    accept_new_data: AcceptNewData = False,
    address: Address = None,
    storage: JobStorage = None,
    as_json: AsJson = False,
) -> None:
    """Search the shape of the experts; every finished trial becomes a version."""
    from cluster.notes import own_note
    from cluster.session import session
    from orchestrator.monitoring.console import Narrator, dashboard_line, rows_progress
    from orchestrator.monitoring.display import study_display
    from orchestrator.tuning.preflight import preflight, remarks
    from orchestrator.tuning.storage import CutOff, study_names
    from orchestrator.tuning.tuner import run

    spec = study_job(job, set_, {"storage": storage, "address": address})
    resume = resume or accept_new_data
    with rows_progress() as tell:
        counts = preflight(spec, resume, tell, accept_new_data=accept_new_data)
    narrator = Narrator()
    for one in (*(count for count in counts.values() if count.losses()), *remarks(spec)):
        narrator.say(str(one))
    how = "--accept-new-data" if accept_new_data else "--resume"
    again = partial(_command, job, set_ or (), {"--address": address, "--storage": storage})
    with session(spec.cluster.address) as cluster:
        narrator.say(f"study {spec.name} · {dashboard_line(cluster)}")
        try:
            with study_display(spec, narrator, own_note(cluster)) as display:
                study = run(spec, resume, display, accept_new_data=accept_new_data)
        except KeyboardInterrupt:
            begun = spec.name in study_names(spec.cluster)  # it may have waited for room
            narrator.say(f"interrupted; go on with: {again(how if begun else None)}")
            raise
        except CutOff as error:
            raise CutOff(f"{error}; go on with: {again(how)}") from None
    _show_leaderboard(study, as_json)
    if study.best() is None:
        _fail_without_a_winner(study)


@app.command()
def leaderboard(
    study: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Rank a study's trials."""
    from orchestrator.tuning.lifecycle import resume_command
    from orchestrator.tuning.study import Study

    place = cluster_spec(storage, store)
    record = Study.open(place, study)
    again = resume_command(record, place)
    _show_leaderboard(record, as_json, interrupted=again is not None)
    if again and not as_json:
        print(f"interrupted; go on with: {again}")


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


def _room(job: "JobSpec", address: str | None) -> list[str]:
    """How the job goes with the cluster; without one, whether this machine is too small for it."""
    from cluster.jobs import JobClient
    from orchestrator.doctor.demand import room_for, too_small_here

    if address is None:
        short = too_small_here(job)
        return [f"{short}; a cluster is looked at by check --address"] if short else []
    client = JobClient(address)
    return list(room_for(job, client.nodes(), client.grows))


def _fail_without_a_winner(study: "Study") -> None:
    """Scripts must not take this for a success."""
    reasons = (f"trial {row.number}: {row.reason}" for row in study.leaderboard() if row.reason)
    typer.echo(f"moetune: study {study.name}: no trial finished; {next(reasons, '')}", err=True)
    raise typer.Exit(1)


def _command(
    job: str, assignments: Sequence[str], options: Mapping[str, str | None], how: str | None
) -> str:
    words = ["moetune", "tune", job, *(f"--set={one}" for one in assignments)]
    words += [f"{option}={value}" for option, value in options.items() if value]
    return shlex.join([*words, *([how] if how else [])])


def _show_leaderboard(study: "Study", as_json: bool, interrupted: bool = False) -> None:
    from orchestrator.monitoring.format import plain
    from orchestrator.registry.exportable import told

    rows = study.leaderboard()
    if interrupted:
        alive = ("running", "waiting")
        rows = [replace(row, state="interrupted") if row.state in alive else row for row in rows]
    export = {row.number: study.exportable(row.number) for row in rows if row.version}
    if as_json:
        known = {number: one.as_dict() for number, one in export.items() if one}
        return print_json([row.as_dict() | {"export": known.get(row.number)} for row in rows])
    varied = sorted({path for row in rows for path in row.params})
    fields = [path.rpartition(".")[2] for path in varied]
    print_table(
        ("trial", "state", study.metric, *fields, "steps", "seconds", "version", "why"),
        [
            (row.number, row.state, row.value, *map(row.params.get, varied), *_end(row))
            for row in rows
        ],
        title=f"study {study.name}",
    )
    for line in told(export.items()):
        print(plain(line))
    return None


def _end(row: "TrialRow") -> tuple[object, ...]:
    return row.steps, row.seconds, row.version, row.reason
