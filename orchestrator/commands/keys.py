"""Commands on the endpoint's keys: create, list, revoke, delete, history."""

import secrets
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    Reason,
    Storage,
    Store,
    cluster_spec,
)
from orchestrator.output import print_json, print_table

app = typer.Typer(no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as list shows it.")]


@app.command()
def create(
    scope: Annotated[
        str, typer.Option(help="What it may do: infer, promote, admin; several with commas.")
    ] = "infer",
    rate: Annotated[str | None, typer.Option(help="Requests, as in 60/min.")] = None,
    quota: Annotated[str | None, typer.Option(help="Tokens, as in 1000000/day.")] = None,
    expires: Annotated[str | None, typer.Option(help="Ends after this time, as in 30d.")] = None,
    note: Annotated[str, typer.Option(help="Whom or what it is for.")] = "",
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once: only its hash is kept."""
    from orchestrator.auth.keys import Key, key_hash
    from orchestrator.auth.made_keys import MadeKeys
    from orchestrator.auth.operator_key import KEY_VARIABLE
    from orchestrator.registry.log import this_user

    caller = _caller(scope, rate, quota)
    text, now = f"mt-{secrets.token_urlsafe(32)}", datetime.now(UTC)
    key = Key(key_hash(text), caller, _one_line(note, "--note"), now, _end(expires, now))
    kept = _key_store(storage, store)
    kept.add(key, this_user())
    MadeKeys(kept.all, storage)()
    if as_json:
        return print_json({**_shown(key, now), "key": text})
    print(text)
    return print(
        f"key {caller.id}: it is not shown again; `moetune ask` reads one from {KEY_VARIABLE}",
        file=sys.stderr,
    )


@app.command("list")
def list_(storage: Storage = DEFAULT_STORAGE, store: Store = None, as_json: AsJson = False) -> None:
    """List all keys that were made and not deleted, and what they used of their quotas by now. The
    keys themselves are nowhere."""
    from orchestrator.auth.rate_limit import window_of

    now, keys = datetime.now(UTC), _key_store(storage, store)
    usage = keys.usage()
    shown = []
    for key in keys.all():
        id_, quota = key.caller.id, key.caller.quota
        used = usage[id_, window_of(quota, now.timestamp())] if quota else None
        shown.append({**_shown(key, now), "used": used})
    if as_json:
        return print_json(shown)
    columns = ("id", "state", "scopes", "rate", "quota", "used", "expires", "note")
    return print_table(columns, [[key[column] for column in columns] for key in shown])


@app.command()
def revoke(id_: Id, storage: Storage = DEFAULT_STORAGE, store: Store = None) -> None:
    """Take a key back: running endpoints refuse it within a few seconds."""
    from orchestrator.registry.log import this_user

    _key_store(storage, store).revoke(id_, datetime.now(UTC), this_user())
    print(f"key {id_} is revoked")


@app.command()
def delete(
    id_: Id, reason: Reason = None, storage: Storage = DEFAULT_STORAGE, store: Store = None
) -> None:
    """Take a key off the list. Without any key left, an endpoint on loopback asks for none again;
    nothing else makes it so."""
    from orchestrator.auth.made_keys import MadeKeys
    from orchestrator.registry.log import this_user

    kept, why = _key_store(storage, store), _one_line(reason or "", "--reason")
    left = kept.delete(id_, datetime.now(UTC), this_user(), why)
    print(f"key {id_} is deleted")
    if not left:
        MadeKeys(kept.all, storage).forget()
        print("it was the last: an endpoint on loopback asks for no key now", file=sys.stderr)


@app.command()
def history(
    storage: Storage = DEFAULT_STORAGE, store: Store = None, as_json: AsJson = False
) -> None:
    """Show who made, revoked and deleted which key, when and why."""
    acts = _key_store(storage, store).log()
    if as_json:
        return print_json(acts)
    columns = ("at", "act", "key", "actor", "reason")
    return print_table(columns, [[act[column] for column in columns] for act in acts])


def _key_store(storage: str, store: str | None) -> Any:
    from orchestrator.auth.key_store import KeyStore

    return KeyStore(cluster_spec(storage, store).store_url())


def _caller(scopes: str, rate: str | None, quota: str | None) -> Any:
    from orchestrator.auth.keys import SCOPES, Caller
    from orchestrator.config.limits import Allowance
    from workers.config.base import InputError

    wanted = {scope.strip() for scope in scopes.split(",")}
    chosen = frozenset(scope for scope in SCOPES if scope in wanted)
    if unknown := wanted - chosen:
        raise InputError(f"--scope {min(unknown)!r}: allowed are {', '.join(SCOPES)}")
    allowed = [Allowance.parse(text) if text else None for text in (rate, quota)]
    return Caller(f"k-{secrets.token_hex(4)}", chosen, *allowed)


def _end(expires: str | None, now: datetime) -> datetime | None:
    from orchestrator.config.limits import span_seconds

    return now + timedelta(seconds=span_seconds(expires)) if expires else None


def _one_line(note: str, option: str) -> str:
    from workers.config.base import InputError

    if len(note) > 200 or not note.isprintable():
        raise InputError(f"{option}: write at most 200 printable characters, on one line")
    return note


def _shown(key: Any, now: datetime) -> dict[str, Any]:
    state = "revoked" if key.revoked else "valid" if key.valid(now) else "expired"
    caller = key.caller
    return {
        "id": caller.id,
        "state": state,
        "scopes": ",".join(sorted(caller.scopes)),
        "rate": caller.rate and str(caller.rate),
        "quota": caller.quota and str(caller.quota),
        "created": key.created.isoformat(timespec="seconds"),
        "expires": key.expires and key.expires.isoformat(timespec="seconds"),
        "note": key.note,
    }
