"""Commands on names and versions: models, evaluate."""

from typing import Annotated

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    Address,
    AsJson,
    Storage,
    Store,
    print_json,
    print_table,
    registry,
)

app = typer.Typer()


@app.command()
def models(
    storage: Storage = DEFAULT_STORAGE, store: Store = None, as_json: AsJson = False
) -> None:
    """List the names that can be served: the champion of each, and what stands beside it."""
    from orchestrator.records import BASE
    from orchestrator.rollout.words import percent

    book = registry(storage, store)
    states = book.rollouts()
    champions = {n: book.version(s.champion) for n, s in states.items() if s.champion != BASE}
    if as_json:
        known = {name: version.as_dict() for name, version in champions.items()}
        return print_json(
            {n: {**known.get(n, {"id": BASE}), "rollout": states[n].as_dict()} for n in states}
        )
    rows = []
    for name, state in states.items():
        champion, canary = champions.get(name), state.canary
        study, trial = (champion.study, champion.trial) if champion else (None, None)
        beside = f"{canary.version} {percent(canary.share)}" if canary else None
        rows.append((name, state.champion, study, trial, beside, state.shadow))
    return print_table(("name", "version", "study", "trial", "canary", "shadow"), rows)


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
