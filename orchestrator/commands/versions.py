"""Commands on names and versions: models, evaluate."""

from typing import Annotated

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    Address,
    AsJson,
    MovedBase,
    Storage,
    Store,
    cluster_spec,
    print_json,
    print_table,
    registry,
)

app = typer.Typer()


@app.command()
def models(
    storage: Storage = DEFAULT_STORAGE, store: Store = None, as_json: AsJson = False
) -> None:
    """List the names that can be served: the champion of each, and what stands beside it; and the
    studies that there are."""
    from orchestrator.records import BASE
    from orchestrator.rollout.words import percent
    from orchestrator.status import status_from_outside
    from orchestrator.study import all_studies

    book = registry(storage, store)
    place = cluster_spec(storage, store)
    studies = [status_from_outside(one, place) for one in all_studies(place)]
    states = book.rollouts()
    champions = {n: book.version(s.champion) for n, s in states.items() if s.champion != BASE}
    if as_json:
        known = {name: version.as_dict() for name, version in champions.items()}
        names = {n: {**known.get(n, {"id": BASE}), "rollout": states[n].as_dict()} for n in states}
        told = [one.model_dump(mode="json") for one in studies]
        return print_json({"names": names, "studies": told})
    rows = []
    for name, state in states.items():
        champion, canary = champions.get(name), state.canary
        study, trial = (champion.study, champion.trial) if champion else (None, None)
        beside = f"{canary.version} {percent(canary.share)}" if canary else None
        rows.append((name, state.champion, study, trial, beside, state.shadow))
    if rows or not studies:
        print_table(("name", "version", "study", "trial", "canary", "shadow"), rows)
    if studies:
        print_table(("studies",), [(one.headline(),) for one in studies])
    return None


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="NAME or NAME@VERSION.")],
    data: Annotated[str, typer.Option(help="Rows that training never saw, as a job names them.")],
    rows: Annotated[int, typer.Option(min=1, help="Take so many rows of each task.")] = 50,
    base: MovedBase = None,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Compare a name with its bare base model on further rows, by task."""
    from cluster.session import session
    from orchestrator.comparison import Measurement, compare_version

    measurement = Measurement.of(registry(storage, store), name, data, rows, base=base)
    with session(address):
        result = compare_version(measurement)
    if as_json:
        return print_json(result.as_dict())
    return print_table(result.columns(), result.rows())
