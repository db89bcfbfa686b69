"""Commands on names and versions: promote, rollback, history, models, evaluate."""

from typing import Annotated

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    Address,
    AsJson,
    Reason,
    Storage,
    Store,
    cluster_spec,
    print_json,
    print_table,
    registry,
)

app = typer.Typer()


@app.command()
def promote(
    study: str,
    to: Annotated[str, typer.Option(help="Name that the endpoint serves.")],
    trial: Annotated[int | None, typer.Option(help="Trial; left out: the best one.")] = None,
    reason: Reason = None,
    force: Annotated[bool, typer.Option(help="Promote against the gate; wants --reason.")] = False,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Make a trial's adapter the champion of a name, if the gate lets it."""
    from orchestrator.promotion import promote as promote_version
    from orchestrator.promotion import this_user
    from orchestrator.study import Study

    record = Study.open(cluster_spec(storage, store), study)
    event = promote_version(
        registry(storage, store),
        record.version(trial),
        to,
        actor=this_user(),
        reason=reason or "",
        force=force,
        metric=record.metric,
        mode=record.mode,
    )
    if as_json:
        return print_json(event.as_dict())
    return print(f"{to} is now {to}@{event.version} (before: {event.previous or 'nothing'})")


@app.command()
def rollback(
    name: str,
    reason: Reason = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Return a name to the champion that it had before."""
    from orchestrator.promotion import rollback as roll_back
    from orchestrator.promotion import this_user

    event = roll_back(registry(storage, store), name, actor=this_user(), reason=reason or "")
    if as_json:
        return print_json(event.as_dict())
    return print(f"{name} is back at {name}@{event.version} (was {event.previous})")


@app.command()
def history(
    name: str, storage: Storage = DEFAULT_STORAGE, store: Store = None, as_json: AsJson = False
) -> None:
    """Show every promotion and rollback of a name: who, when, why."""
    from workers.spec import InputError

    book = registry(storage, store)
    events = book.history(name)
    if not events:
        known = ", ".join(book.names()) or "none yet"
        raise InputError(f"{name}: nothing was promoted to this name; names are: {known}")
    if as_json:
        return print_json([event.as_dict() for event in events])
    columns = ("revision", "at", "action", "version", "previous", "actor", "reason")
    return print_table(columns, [[getattr(event, c) for c in columns] for event in events])


@app.command()
def models(
    storage: Storage = DEFAULT_STORAGE, store: Store = None, as_json: AsJson = False
) -> None:
    """List the names that can be served, each with its champion."""
    book = registry(storage, store)
    champions = book.champions()
    if as_json:
        return print_json({name: version.as_dict() for name, version in champions.items()})
    rows = [(name, v.id, v.study, v.trial) for name, v in champions.items()]
    return print_table(("name", "version", "study", "trial"), rows)


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="NAME or NAME@VERSION.")],
    data: Annotated[str, typer.Option(help="Rows that training never saw, as a job names them.")],
    rows: Annotated[int, typer.Option(min=1, help="Take so many rows of each task.")] = 50,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Compare a name with its bare base model on further rows, by task."""
    from cluster.session import session
    from orchestrator.comparison import compare_version

    book = registry(storage, store)
    book.resolve(name)
    with session(address):
        result = compare_version(book, name, data, rows)
    if as_json:
        return print_json(result.as_dict())
    return print_table(result.columns(), result.rows())
