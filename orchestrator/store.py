"""The registry's two tables, in the same database as Optuna's. Loaded only when it is used."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.schema import CreateTable

from workers.spec import InputError

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

Row = sa.RowMapping


class Store:
    """Reads and appends rows; every statement is its own transaction."""

    def __init__(self, url: str) -> None:
        """Connect and make the tables where they are missing."""
        self._engine = _engine(url)
        self._shown = self._engine.url.render_as_string(hide_password=True)
        self._create_tables()

    def add_version(self, row: Mapping[str, Any]) -> None:
        """Insert a version; one that is there stays as it is."""
        self._insert(VERSIONS, row)

    def add_event(self, row: Mapping[str, Any]) -> bool:
        """Append an event; False where its (name, revision) was taken in the meantime."""
        return self._insert(EVENTS, row)

    def versions(self, study: str | None = None, prefix: str = "") -> Sequence[Row]:
        """Versions of a study, or those whose digest begins with `prefix`, oldest first."""
        query = sa.select(VERSIONS).order_by(VERSIONS.c.created, VERSIONS.c.digest)
        if study is not None:
            query = query.where(VERSIONS.c.study == study)
        return self._rows(query.where(VERSIONS.c.digest.startswith(prefix, autoescape=True)))

    def events(self, name: str) -> Sequence[Row]:
        """The whole log of a name, oldest first."""
        query = sa.select(EVENTS).where(EVENTS.c.name == name).order_by(EVENTS.c.revision)
        return self._rows(query)

    def names(self) -> list[str]:
        """All names that have events."""
        query = sa.select(EVENTS.c.name).distinct().order_by(EVENTS.c.name)
        return [row["name"] for row in self._rows(query)]

    def count_events(self) -> int:
        """Events of all names."""
        [row] = self._rows(sa.select(sa.func.count().label("events")).select_from(EVENTS))
        return int(row["events"])

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    def _rows(self, query: sa.Select[Any]) -> Sequence[Row]:
        with self._connection() as connection:
            return connection.execute(query).mappings().all()

    def _insert(self, table: sa.Table, row: Mapping[str, Any]) -> bool:
        try:
            with self._connection() as connection:
                connection.execute(sa.insert(table), dict(row))
        except exc.IntegrityError:
            return False
        return True

    def _create_tables(self) -> None:
        for table in METADATA.sorted_tables:
            # PostgreSQL: an IntegrityError says that another process made it in this moment.
            with suppress(exc.IntegrityError), self._connection() as connection:
                connection.execute(CreateTable(table, if_not_exists=True))

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise InputError(f"store {self._shown}: {reason}") from None


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        dialect = parsed.get_backend_name()
        if dialect == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        # SQLite: writers wait for one another. Others: a server may have closed idle connections.
        options: dict[str, Any] = (
            {"connect_args": {"timeout": 60}} if dialect == "sqlite" else {"pool_pre_ping": True}
        )
        return sa.create_engine(parsed, **options)
    except (exc.ArgumentError, ModuleNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"store: no usable SQLAlchemy URL: {reason}") from None
