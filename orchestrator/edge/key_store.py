"""The keys and what they have used, in the registry's database. Loaded only when it is used."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any, cast

import sqlalchemy as sa

from orchestrator.database import Database, Row
from orchestrator.edge.allowance import SECONDS, Allowance
from orchestrator.edge.keys import Caller, Key, Scope
from orchestrator.edge.meter import Usage
from workers.spec import InputError

TABLES = sa.MetaData()

KEYS = sa.Table(
    "moetune_keys",
    TABLES,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.String(64), nullable=False),
    sa.Column("rate", sa.String(32)),
    sa.Column("quota", sa.String(32)),
    sa.Column("note", sa.String(200), nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("expires", sa.String(32)),
    sa.Column("revoked", sa.String(32)),
)

USAGE = sa.Table(
    "moetune_usage",
    TABLES,
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("window", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
)


class KeyStore:
    """Reads and writes keys and their usage."""

    def __init__(self, url: str) -> None:
        """Connect and make the tables where they are missing."""
        self._database = Database(url, TABLES)

    def add(self, key: Key) -> None:
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
        if not self._database.insert(KEYS, row):
            raise InputError(f"key {caller.id}: there is one already")

    def all(self) -> list[Key]:
        """All keys that were ever made, oldest first."""
        query = sa.select(KEYS).order_by(KEYS.c.created, KEYS.c.id)
        return [_key(row) for row in self._database.rows(query)]

    def revoke(self, id: str, now: datetime) -> None:
        """Let a key open nothing from now on. InputError where there is no such key."""
        statement = sa.update(KEYS).where(KEYS.c.id == id, KEYS.c.revoked.is_(None))
        with self._database.transaction() as connection:
            if connection.execute(statement.values(revoked=now.isoformat())).rowcount:
                return
            if connection.execute(sa.select(KEYS.c.id).where(KEYS.c.id == id)).first():
                raise InputError(f"key {id}: was revoked already")
        raise InputError(f"key {id}: there is none; `moetune keys list` shows them")

    def use(self, used: Usage) -> Usage:
        """Add what was used; returns the usage of all windows that may be open."""
        with self._database.transaction() as connection:
            for (key, window), tokens in used.items():
                _add(connection, key, window, tokens)
        return self.usage()

    def usage(self) -> Usage:
        """Tokens used, in all windows that may be open."""
        oldest = int(datetime.now(UTC).timestamp()) - max(SECONDS.values())
        rows = self._database.rows(sa.select(USAGE).where(USAGE.c.window >= oldest))
        return Counter({(row["key"], row["window"]): row["tokens"] for row in rows})

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


def _add(connection: sa.Connection, key: str, window: int, tokens: int) -> None:
    there = sa.and_(USAGE.c.key == key, USAGE.c.window == window)
    grown = sa.update(USAGE).where(there).values(tokens=USAGE.c.tokens + tokens)
    if not connection.execute(grown).rowcount:
        row = {"key": key, "window": window, "tokens": tokens}
        connection.execute(sa.insert(USAGE).values(row))


def _key(row: Row) -> Key:
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
