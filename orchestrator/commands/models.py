"""`moetune models`: names, and what is deleted with them."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import completion
from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    Reason,
    Storage,
    Store,
    cluster_spec,
    registry,
)
from orchestrator.output import print_json, print_table

if TYPE_CHECKING:
    from orchestrator.config.cluster import ClusterSpec

app = typer.Typer()


@app.command()
def models(
    delete: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|ID",
            help="Delete a name with its history, or a version.",
            autocompletion=completion.names,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Delete a name although an endpoint serves it.")
    ] = False,
    reason: Reason = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """List the names that can be served: the champion of each, and what stands beside it; and the
    studies that there are. With --delete, delete what nothing leads to any more."""
    if delete is None:
        return _list(storage, store, as_json)
    return _delete(delete, reason or "", force, cluster_spec(storage, store), as_json)


def _delete(what: str, reason: str, force: bool, place: "ClusterSpec", as_json: bool) -> None:
    from orchestrator.disk.deletion import delete
    from orchestrator.registry.describe import outcome
    from orchestrator.registry.log import this_user

    if not force:
        _say_that_it_looks(place, what)
    events = delete(place, what, actor=this_user(), reason=reason, force=force)
    if as_json:
        return print_json({"deleted": what, "events": [event.as_dict() for event in events]})
    said = [outcome(event) for event in events] or [f"version {what} is deleted"]
    return print("\n".join(said))


def _say_that_it_looks(place: "ClusterSpec", name: str) -> None:
    """Why nothing is to be seen for a while."""
    from orchestrator.monitoring.format import plain
    from orchestrator.registry.presence import SILENT_SECONDS, is_said_to_be_served

    if is_said_to_be_served(place.store_url(), name):
        line = (
            f"looking whether the endpoint that says it serves {name} is still there "
            f"(up to {SILENT_SECONDS:.0f} s)"
        )
        print(plain(line), file=sys.stderr, flush=True)


def _list(storage: str, store: str | None, as_json: bool) -> None:
    from orchestrator.monitoring.status import status_from_outside
    from orchestrator.registry.describe import percent
    from orchestrator.registry.models import BASE
    from orchestrator.tuning.study import all_studies

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
