"""The registry's tables, in the same database as Optuna's. Loaded only when it is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from orchestrator.database import Database, Row

__all__ = ["Row", "Store"]

METADATA = sa.MetaData()

VERSIONS = sa.Table(
    "moetune_versions",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("study", sa.String(63), nullable=False),
    sa.Column("trial", sa.Integer),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
)

# Rows are only ever inserted. The key makes an insert the compare-and-set: of two writers that
# have both seen revision n, one gets n + 1 and the other an integrity error.
EVENTS = sa.Table(
    "moetune_events",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("version", sa.String(12), nullable=False),
    sa.Column("previous", sa.String(12)),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)

# The first answer of a version's replicas to a golden prompt; the key lets no second one in.
ANSWERS = sa.Table(
    "moetune_answers",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("setting", sa.String(64), primary_key=True),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)


class Store:
    """Reads and appends rows; every statement is its own transaction."""

    def __init__(self, url: str, patience: float = 0.0) -> None:
        """See `Database`."""
        self._database = Database(url, METADATA, patience)

    def add_version(self, row: Mapping[str, Any]) -> None:
        """Insert a version; one that is there stays as it is."""
        self._database.insert(VERSIONS, row)

    def add_event(self, row: Mapping[str, Any]) -> bool:
        """Append an event; False where its (name, revision) was taken in the meantime."""
        return self._database.insert(EVENTS, row)

    def add_answer(self, row: Mapping[str, Any]) -> None:
        """Insert an answer; one that is there stays as it is."""
        self._database.insert(ANSWERS, row)

    def answers(self, digest: str, setting: str) -> Sequence[Row]:
        """The first answer of a version in a setting, if there is one."""
        query = sa.select(ANSWERS).where(ANSWERS.c.digest == digest, ANSWERS.c.setting == setting)
        return self._database.rows(query)

    def versions(self, study: str | None = None, prefix: str = "") -> Sequence[Row]:
        """Versions of a study, or those whose digest begins with `prefix`, oldest first."""
        query = sa.select(VERSIONS).order_by(VERSIONS.c.created, VERSIONS.c.digest)
        if study is not None:
            query = query.where(VERSIONS.c.study == study)
        return self._database.rows(
            query.where(VERSIONS.c.digest.startswith(prefix, autoescape=True))
        )

    def events(self, name: str, since: int = 0) -> Sequence[Row]:
        """The log of a name from a revision on, oldest first."""
        query = sa.select(EVENTS).where(EVENTS.c.name == name, EVENTS.c.revision >= since)
        return self._database.rows(query.order_by(EVENTS.c.revision))

    def was_given(self, name: str, version: str) -> bool:
        """Whether users of a name have ever met a version."""
        query = sa.select(sa.true()).where(
            EVENTS.c.name == name,
            EVENTS.c.version == version,
            EVENTS.c.action.in_(("promote", "canary")),
        )
        return bool(self._database.rows(query.limit(1)))

    def names(self) -> list[str]:
        """All names that have events."""
        query = sa.select(EVENTS.c.name).distinct().order_by(EVENTS.c.name)
        return [row["name"] for row in self._database.rows(query)]

    def count_events(self) -> int:
        """Events of all names."""
        [row] = self._database.rows(sa.select(sa.func.count().label("events")).select_from(EVENTS))
        return int(row["events"])

    def close(self) -> None:
        """Close the pooled connections."""
        self._database.close()
