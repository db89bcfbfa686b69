"""The registry's rows, in the same database as Optuna's. Loaded only when it is used."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from orchestrator.store.database import Database, DatabaseRow
from orchestrator.store.schema import ANSWERS, EVALUATIONS, EVENTS, REMOVED, VERSIONS
from orchestrator.store.upgrade import has_columns

Decide = Callable[[Sequence[DatabaseRow]], Iterable[Mapping[str, Any]]]
"""The rows that a log gets, from what it has."""
TABLES = (VERSIONS, EVENTS, ANSWERS, REMOVED)
"""Without which nothing can be read. A store from before evaluations that cannot be written has
none."""


def names_query(deleted: bool = False) -> sa.Select[tuple[str]]:
    """All names that have events; or those of which only their end is left."""
    live = EVENTS.c.action != "delete"
    query = sa.select(EVENTS.c.name).distinct().order_by(EVENTS.c.name)
    if deleted:
        return query.where(EVENTS.c.name.not_in(sa.select(EVENTS.c.name).where(live)))
    return query.where(live)


class Store:
    """Reads and appends rows; every statement is its own transaction."""

    def __init__(self, url: str, patience: float = 0.0) -> None:
        """See `Database`."""
        self._database = Database(url, TABLES, patience)

    def add_version(self, row: Mapping[str, Any]) -> None:
        """Insert a version; one that is there stays as it is. Its files are not to go any more."""
        self._database.insert(VERSIONS, row, partial(_take_back, digest=row["digest"]))

    def add_event(self, row: Mapping[str, Any], version_there: bool = False) -> bool:
        """Append an event; False where its (name, revision) was taken in the meantime.
        `version_there`: LookupError where its version has been deleted by then."""
        there = [partial(_keep_version, id=row["version"])] if version_there else []
        return self._database.insert(EVENTS, row, *there)

    def end_log(self, row: Mapping[str, Any]) -> bool:
        """Put an event in the place of all that its name's log had before; False as `add_event`."""
        before = sa.and_(EVENTS.c.name == row["name"], EVENTS.c.revision < row["revision"])
        return self._database.insert(
            EVENTS, row, lambda c: c.execute(sa.delete(EVENTS).where(before))
        )

    def remove_version(self, digest: str, id: str, decide: Decide) -> list[Mapping[str, Any]]:
        """Delete a version with its answers and evaluations, and append what `decide` says of each
        log that names it, which is returned; where that raises, all stays. No promotion of it can
        come in between. Its files are to go next, by `remove_files`.
        """
        written: list[Mapping[str, Any]] = []

        def work(connection: sa.Connection) -> None:
            written.clear()
            for table in (VERSIONS, ANSWERS, EVALUATIONS):
                connection.execute(sa.delete(table).where(table.c.digest == digest))
            _take_back(connection, digest)
            connection.execute(sa.insert(REMOVED), {"digest": digest})
            named = sa.select(EVENTS.c.name).where(EVENTS.c.version == id).distinct()
            for name in connection.execute(named.order_by(EVENTS.c.name)).scalars().all():
                log = connection.execute(_log(name)).mappings().all()
                written.extend(decide(log))
            for row in written:
                connection.execute(sa.insert(EVENTS), dict(row))

        self._database.attempt(work)
        return written

    def removed(self, prefix: str) -> list[str]:
        """Digests that begin so, of versions whose files are still to go."""
        query = sa.select(REMOVED).where(REMOVED.c.digest.startswith(prefix, autoescape=True))
        return [row["digest"] for row in self._database.rows(query)]

    def remove_files(self, digest: str, remove: Callable[[], None]) -> None:
        """Call `remove` if the version's files are still to go, and note that they are gone. Who
        adds the version again waits meanwhile."""
        with self._database.transaction() as connection:
            if _take_back(connection, digest):
                remove()

    def add_answer(self, row: Mapping[str, Any]) -> None:
        """Insert an answer; one that is there stays as it is."""
        self._database.insert(ANSWERS, row)

    def answers(self, digest: str, setting: str) -> Sequence[DatabaseRow]:
        """The first answer of a version in a setting, if there is one."""
        query = sa.select(ANSWERS).where(ANSWERS.c.digest == digest, ANSWERS.c.setting == setting)
        return self._database.rows(query)

    def add_evaluation(self, row: Mapping[str, Any]) -> None:
        """Append what a version was measured on, and what that gave."""
        self._database.insert(EVALUATIONS, row)

    def evaluations(self, digest: str) -> Sequence[DatabaseRow]:
        """Those of a version, oldest first."""
        query = sa.select(EVALUATIONS).where(EVALUATIONS.c.digest == digest)
        with self._database.transaction() as connection:
            if not has_columns(connection, (EVALUATIONS,)):
                return []
        return self._database.rows(query.order_by(EVALUATIONS.c.number))

    def versions(self, study: str | None = None, prefix: str = "") -> Sequence[DatabaseRow]:
        """Versions of a study, or those whose digest begins with `prefix`, oldest first."""
        query = sa.select(VERSIONS).order_by(VERSIONS.c.created, VERSIONS.c.digest)
        if study is not None:
            query = query.where(VERSIONS.c.study == study)
        return self._database.rows(
            query.where(VERSIONS.c.digest.startswith(prefix, autoescape=True))
        )

    def events(self, name: str, since: int = 0) -> Sequence[DatabaseRow]:
        """The log of a name from a revision on, oldest first."""
        return self._database.rows(_log(name).where(EVENTS.c.revision >= since))

    def was_given(self, name: str, version: str) -> bool:
        """Whether users of a name have ever met a version."""
        query = sa.select(sa.true()).where(
            EVENTS.c.name == name,
            EVENTS.c.version == version,
            EVENTS.c.action.in_(("promote", "canary")),
        )
        return bool(self._database.rows(query.limit(1)))

    def names(self, deleted: bool = False) -> list[str]:
        """All names that have events; or those of which only their end is left."""
        return [row["name"] for row in self._database.rows(names_query(deleted))]

    def revision(self) -> int:
        """The sum of all names' revisions."""
        latest = sa.select(sa.func.max(EVENTS.c.revision).label("revision")).group_by(EVENTS.c.name)
        total = sa.func.coalesce(sa.func.sum(latest.subquery().c.revision), 0).label("revision")
        [row] = self._database.rows(sa.select(total))
        return int(row["revision"])

    def close(self) -> None:
        """Close the pooled connections."""
        self._database.close()


def _log(name: str) -> sa.Select[Any]:
    return sa.select(EVENTS).where(EVENTS.c.name == name).order_by(EVENTS.c.revision)


def _take_back(connection: sa.Connection, digest: str) -> bool:
    """Strike a version from those whose files are to go; whether it was one."""
    return bool(connection.execute(sa.delete(REMOVED).where(REMOVED.c.digest == digest)).rowcount)


def _keep_version(connection: sa.Connection, id: str) -> None:
    """LookupError where there is no such version; to the transaction's end nobody deletes it. A
    server locks its row; SQLite, which writes one transaction at a time, from the first write on.
    """
    query = sa.select(VERSIONS.c.digest).where(VERSIONS.c.digest.startswith(id, autoescape=True))
    if connection.execute(query.with_for_update(read=True)).first() is None:
        raise LookupError(id)
