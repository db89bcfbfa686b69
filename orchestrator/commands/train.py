"""Commands that train: tune, a search, and train, one run."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import completion
from orchestrator.commands.leaderboard import show_leaderboard
from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    AcceptNewData,
    Address,
    AsJson,
    Assignments,
    Job,
    JobStorage,
    Resume,
    names_a_folder,
    registry,
    send,
    study_job,
)

if TYPE_CHECKING:
    from orchestrator.config.job import JobSpec
    from orchestrator.tuning.study import Study

app = typer.Typer()


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
    spec = study_job(job, set_, {"storage": storage, "address": address})
    again = _Again("tune", job, set_ or (), {"--address": address, "--storage": storage})
    _run(spec, again, resume=resume, accept_new_data=accept_new_data, as_json=as_json)


@app.command()
def train(
    job: Job,
    set_: Assignments = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|FOLDER",
            help="Begin with the weights of NAME, NAME@VERSION or an adapter's folder, in its "
            "shape: the job's section adapter is that one's.",
            autocompletion=completion.names,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut off.")
    ] = False,
    accept_new_data: AcceptNewData = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Send it to the cluster as a Ray Job; wants --address.")
    ] = False,
    address: Address = None,
    storage: JobStorage = None,
    as_json: AsJson = False,
) -> None:
    """Train the job's own fields as one run, without a search; its adapter becomes a version.

    It is a study of one trial: status, report, promote and the like take the job's name."""
    from orchestrator.config.job import assigned, override_job
    from orchestrator.tuning.one_run import one_run, trained_on

    spec = study_job(job, set_, {"storage": storage, "address": address})
    if from_:  # --set changes what that brings, too
        spec = trained_on(spec, _folder(from_, spec))
        spec = override_job(spec, assigned(set_ or ()), "--set")
    spec = one_run(spec)
    if detach:
        return _send(spec, resume, accept_new_data=accept_new_data, as_json=as_json)
    options = {"--from": from_, "--address": address, "--storage": storage}
    again = _Again("train", job, set_ or (), options)
    return _run(spec, again, resume=resume, accept_new_data=accept_new_data, as_json=as_json)


@dataclass(frozen=True)
class _Again:
    """A command line, to be given again."""

    command: str
    job: str
    assignments: Sequence[str]
    options: Mapping[str, str | None]

    def __call__(self, how: str | None) -> str:
        words = ["moetune", self.command, self.job, *(f"--set={one}" for one in self.assignments)]
        words += [f"{option}={value}" for option, value in self.options.items() if value]
        return shlex.join([*words, *([how] if how else [])])


def _run(
    spec: "JobSpec", again: _Again, *, resume: bool, accept_new_data: bool, as_json: bool
) -> None:
    """Run a study to its end and print its leaderboard."""
    from cluster.notes import own_note
    from cluster.session import session
    from orchestrator.monitoring.console import Narrator, dashboard_line, rows_progress
    from orchestrator.monitoring.display import study_display
    from orchestrator.tuning.preflight import preflight, remarks
    from orchestrator.tuning.storage import CutOff, study_names
    from orchestrator.tuning.tuner import run

    resume = resume or accept_new_data
    with rows_progress() as tell:
        counts = preflight(spec, resume, tell, accept_new_data=accept_new_data)
    narrator = Narrator()
    for one in (*(count for count in counts.values() if count.losses()), *remarks(spec)):
        narrator.say(str(one))
    how = "--accept-new-data" if accept_new_data else "--resume"
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
    show_leaderboard(study, as_json)
    if study.best() is None:
        _fail_without_a_winner(study)
    if not as_json:
        _say_what_next(spec, study)


def _say_what_next(spec: "JobSpec", study: "Study") -> None:
    """After one run there is nothing to choose."""
    from orchestrator.tuning.one_run import is_one_run

    if is_one_run(spec):
        words, place = ["moetune", "promote", study.name, "--to", "NAME"], spec.cluster
        words += [f"--storage={place.storage}"] if place.storage != DEFAULT_STORAGE else []
        words += [f"--store={place.store}"] if place.store else []
        print(f"promote it with: {shlex.join(words)}")


def _fail_without_a_winner(study: "Study") -> None:
    """Scripts must not take this for a success."""
    reasons = (f"trial {row.number}: {row.reason}" for row in study.leaderboard() if row.reason)
    typer.echo(f"moetune: study {study.name}: no trial finished; {next(reasons, '')}", err=True)
    raise typer.Exit(1)


def _send(spec: "JobSpec", resume: bool, *, accept_new_data: bool, as_json: bool) -> None:
    """Run it as a job of its cluster."""
    from workers.config.base import InputError

    if spec.cluster.address is None:
        raise InputError("train --detach: needs --address: a local cluster ends with the command")
    send(spec, spec.cluster.address, resume, accept_new_data=accept_new_data, as_json=as_json)


def _folder(what: str, spec: "JobSpec") -> Path:
    """Where the adapter lies that is trained on."""
    place = spec.cluster.storage, spec.cluster.store
    if names_a_folder(what, *place):
        return Path(what)
    folder: Path = registry(*place).resolve(what).folder
    return folder
