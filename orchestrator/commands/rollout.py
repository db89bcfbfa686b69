"""Commands that change what a name means, and its history: promote, rollback, abort, history."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import completion
from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    Address,
    AsJson,
    JobStorage,
    MovedBase,
    Name,
    Reason,
    Storage,
    Store,
    cluster_spec,
    registry,
    study_job,
)
from orchestrator.output import print_json, print_table

app = typer.Typer()


@app.command()
def promote(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|NAME",
            help="Study; the name, with --version alone.",
            autocompletion=completion.studies_and_names,
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(help="Name that the endpoint serves.", autocompletion=completion.names),
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Trial; left out: the best one.")] = None,
    version: Annotated[
        str | None,
        typer.Option(
            metavar="ID|FOLDER",
            help="A version of the registry, of any name; or an adapter's folder, which is first "
            "measured against the base.",
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Job whose base, rows and metric a FOLDER is measured by; left out: the study's, "
            "or the name's.",
            autocompletion=completion.jobs,
        ),
    ] = None,
    canary: Annotated[
        str | None, typer.Option(metavar="SHARE", help="To a share of the users only: 10%.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="PLAN", help='Step by step: "5%,25%,100% every 30m".')
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Answer beside the champion; compared, not returned.")
    ] = False,
    reason: Reason = None,
    force: Annotated[bool, typer.Option(help="Promote against the gate; wants --reason.")] = False,
    base: MovedBase = None,
    address: Address = None,
    storage: JobStorage = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Make a trial's adapter, or any version, the champion of a name, its canary or its shadow, if
    the gate lets it."""
    from orchestrator.candidates.candidate import Wish
    from orchestrator.monitoring.format import plain
    from orchestrator.registry.exportable import Exportable
    from orchestrator.registry.log import this_user
    from orchestrator.registry.plan import stage
    from orchestrator.registry.promote import check_stage
    from orchestrator.registry.promote import promote as promote_version

    chosen, wish = stage(canary, plan, shadow), Wish(study, to, trial, version, job, base)
    wish.check()
    where = {"storage": storage, "store": store, "address": address}
    like = study_job(job, (), where) if job else None
    if like:
        told = like.cluster
        storage, store, address = told.storage, told.store, told.address
        # The first version of all may come from elsewhere.
        Path(told.storage).mkdir(parents=True, exist_ok=True)
    storage = storage or DEFAULT_STORAGE
    book, place = registry(storage, store), cluster_spec(storage, store)
    check_stage(book, wish.name, chosen, reason or "", force=force)
    candidate = wish.candidate(book, place, address, like)
    event = promote_version(
        book,
        candidate.version,
        wish.name,
        actor=this_user(),
        reason=reason or "",
        force=force,
        metric=candidate.metric,
        mode=candidate.mode,
        stage=chosen,
    )
    export = Exportable.of_version(book, book.version(event.version))
    if as_json:
        return print_json({**event.as_dict(), "export": export.as_dict() if export else None})
    _print(event, as_json)
    if not export:
        return None
    options = {"storage": storage if storage != DEFAULT_STORAGE else None, "store": store}
    again = "".join(f" --{name} {shlex.quote(it)}" for name, it in options.items() if it)
    return print(plain(export.said(f"{wish.name}@{event.version}", again)))


@app.command()
def rollback(
    name: Name,
    reason: Reason = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Take back what was done last: end a name's canary, or return to the champion before."""
    from orchestrator.registry.log import this_user
    from orchestrator.registry.promote import rollback as roll_back

    book = registry(storage, store)
    return _print(roll_back(book, name, actor=this_user(), reason=reason or ""), as_json)


@app.command()
def abort(
    name: Name,
    reason: Reason = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """End a name's canary; where it has none, its shadow. The champion stays."""
    from orchestrator.registry.log import this_user
    from orchestrator.registry.promote import abort as end

    book = registry(storage, store)
    return _print(end(book, name, actor=this_user(), reason=reason or ""), as_json)


@app.command()
def history(
    name: Name, storage: Storage = DEFAULT_STORAGE, store: Store = None, as_json: AsJson = False
) -> None:
    """Show all that happened to a name: who, when, why, and on what evidence."""
    from orchestrator.registry.describe import evidence_line
    from workers.config.base import InputError

    book = registry(storage, store)
    events = book.history(name)
    if not events:
        known = ", ".join(book.names()) or "none yet"
        raise InputError(f"{name}: nothing was promoted to this name; names are: {known}")
    if as_json:
        return print_json([event.as_dict() for event in events])
    columns = ("revision", "at", "action", "version", "previous", "actor", "reason")
    rows = [[*(getattr(event, c) for c in columns), evidence_line(event)] for event in events]
    return print_table((*columns, "evidence"), rows)


def _print(event: Any, as_json: bool) -> None:
    from orchestrator.registry.describe import outcome

    return print_json(event.as_dict()) if as_json else print(outcome(event))
