"""The keys and what they have used, in the registry's database. Loaded only when it is used."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import sqlalchemy as sa

from orchestrator.auth.keys import Caller, Key, Scope
from orchestrator.auth.rate_limit import Spent, Usage, UsageKey
from orchestrator.config.limits import SECONDS, Allowance
from orchestrator.store.database import Database, DatabaseRow
from orchestrator.store.schema import KEY_LOG, KEYS, SPENT
from workers.config.base import InputError

DAY = max(SECONDS.values())
"""The longest window."""

FORGOTTEN_SECONDS = 60
"""What a gateway has reserved counts no longer once it has been silent for so long: it is gone."""


class _Heard(NamedTuple):
    """The last save that a gateway was heard of by, and since when."""

    save: int
    since: float


class KeyStore:
    """Reads and writes keys and their usage."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Connect and make the tables where they are missing."""
        self._database, self._clock = Database(url, (KEYS, SPENT, KEY_LOG)), clock
        self._heard: dict[str, _Heard] = {}

    def add(self, key: Key, actor: str = "") -> None:
        """Keep a new key."""
        caller = key.caller
        row = {
            "id": caller.id,
            "hash": key.hash,
            "scopes": ",".join(sorted(caller.scopes)),
            "rate": caller.rate and str(caller.rate),
            "quota": caller.quota and str(caller.quota),
            "note": key.note,
            "created": key.created.isoformat(),
            "expires": key.expires and key.expires.isoformat(),
        }

        def work(connection: sa.Connection) -> None:
            if connection.execute(sa.select(KEYS.c.id).where(KEYS.c.id == caller.id)).first():
                raise InputError(f"key {caller.id}: there is one already")
            connection.execute(sa.insert(KEYS), row)
            _note(connection, "create", caller.id, key.created, actor, key.note)

        self._database.attempt(work)

    def all(self) -> list[Key]:
        """All keys that were made and not deleted, oldest first."""
        query = sa.select(KEYS).order_by(KEYS.c.created, KEYS.c.id)
        return [_key(row) for row in self._database.rows(query)]

    def revoke(self, id: str, now: datetime, actor: str = "") -> None:
        """Let a key open nothing from now on. InputError where there is no such key."""
        statement = sa.update(KEYS).where(KEYS.c.id == id, KEYS.c.revoked.is_(None))
        with self._database.transaction() as connection:
            if connection.execute(statement.values(revoked=now.isoformat())).rowcount:
                _note(connection, "revoke", id, now, actor)
                return
            if connection.execute(sa.select(KEYS.c.id).where(KEYS.c.id == id)).first():
                raise InputError(f"key {id}: was revoked already")
        raise _unknown(id)

    def delete(self, id: str, now: datetime, actor: str = "", reason: str = "") -> int:
        """Take a key off the list, valid or not; how many are left. InputError where there is no
        such key."""
        with self._database.transaction() as connection:
            if not connection.execute(sa.delete(KEYS).where(KEYS.c.id == id)).rowcount:
                raise _unknown(id)
            _note(connection, "delete", id, now, actor, reason)
            left = connection.execute(sa.select(sa.func.count()).select_from(KEYS)).scalar_one()
            return int(left)

    def given_up(self) -> bool:
        """Where there is no key: whether the last one was deleted, and not lost."""
        newest = sa.select(KEY_LOG.c.act).order_by(KEY_LOG.c.number.desc()).limit(1)
        return [row["act"] for row in self._database.rows(newest)] == ["delete"]

    def log(self) -> list[dict[str, Any]]:
        """What was done to which key: `at`, `act`, `key`, `actor`, `reason`, oldest first."""
        rows = self._database.rows(sa.select(KEY_LOG).order_by(KEY_LOG.c.number))
        return [dict(row) for row in rows]

    def exchange(self, gateway: str, save: int, spent: Mapping[UsageKey, Spent]) -> Usage:
        """Write a gateway's totals; returns what all others have used and reserved in the windows
        that may be open. Of two saves the one with the larger number stays, whichever comes last.
        """
        now = int(datetime.now(UTC).timestamp())
        if spent:

            def write(connection: sa.Connection) -> None:
                connection.execute(sa.delete(SPENT).where(SPENT.c.window < now - 2 * DAY))
                for (key, window), one in spent.items():
                    place = {"gateway": gateway, "key": key, "window": window}
                    _put(connection, place, {**one._asdict(), "save": save, "at": now})

            self._database.attempt(write)
        living = SPENT.c.gateway.in_(self._living(now))
        tokens = SPENT.c.used + sa.case((living, SPENT.c.reserved), else_=0)
        return self._sums(tokens, now, SPENT.c.gateway != gateway)

    def _living(self, now: int) -> list[str]:
        """Gateways that have reserved something and go on saving, which those do every second.

        By this process's own clock: theirs may be wrong. Only of one that is new here theirs says
        whether it is long gone, until its next save.
        """
        last = sa.func.max(SPENT.c.save).label("save"), sa.func.max(SPENT.c.at).label("at")
        query = sa.select(SPENT.c.gateway, *last).where(SPENT.c.reserved > 0)
        heard, clock = {}, self._clock()
        for row in self._database.rows(query.group_by(SPENT.c.gateway)):
            silent = FORGOTTEN_SECONDS if row["at"] < now - FORGOTTEN_SECONDS else 0
            known = self._heard.get(row["gateway"])
            if known is None:
                known = _Heard(row["save"], clock - silent)
            elif known.save != row["save"]:
                known = _Heard(row["save"], clock)
            heard[row["gateway"]] = known
        self._heard = heard
        return [id for id, one in heard.items() if clock - one.since < FORGOTTEN_SECONDS]

    def usage(self) -> Usage:
        """Tokens used, in all windows that may be open."""
        return self._sums(SPENT.c.used, int(datetime.now(UTC).timestamp()))

    def _sums(
        self, tokens: sa.ColumnElement[int], now: int, *which: sa.ColumnElement[bool]
    ) -> Usage:
        query = sa.select(SPENT.c.key, SPENT.c.window, sa.func.sum(tokens).label("tokens"))
        query = query.where(SPENT.c.window >= now - DAY, *which)
        rows = self._database.rows(query.group_by(SPENT.c.key, SPENT.c.window))
        return Counter(
            {(row["key"], row["window"]): int(row["tokens"]) for row in rows if row["tokens"]}
        )

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


def _unknown(id: str) -> InputError:
    return InputError(f"key {id}: there is none; `moetune keys list` shows them")


def _note(  # noqa: PLR0913, PLR0917
    connection: sa.Connection, act: str, key: str, at: datetime, actor: str, reason: str = ""
) -> None:
    row = {"at": at.isoformat(), "act": act, "key": key, "actor": actor, "reason": reason}
    connection.execute(sa.insert(KEY_LOG), row)


def _put(connection: sa.Connection, place: Mapping[str, Any], values: Mapping[str, int]) -> None:
    there = [SPENT.c[name] == value for name, value in place.items()]
    newer = sa.update(SPENT).where(*there, SPENT.c.save <= values["save"]).values(values)
    if connection.execute(newer).rowcount:
        return
    if connection.execute(sa.select(SPENT.c.save).where(*there)).first() is None:
        connection.execute(sa.insert(SPENT).values({**place, **values}))


def _key(row: DatabaseRow) -> Key:
    caller = Caller(
        row["id"],
        frozenset(cast(list[Scope], row["scopes"].split(","))),
        row["rate"] and Allowance.parse(row["rate"]),
        row["quota"] and Allowance.parse(row["quota"]),
    )
    return Key(
        row["hash"],
        caller,
        row["note"],
        datetime.fromisoformat(row["created"]),
        _time(row["expires"]),
        _time(row["revoked"]),
    )


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
