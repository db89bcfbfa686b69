"""Tables of ours in the database that holds Optuna's. Loaded only when it is used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.schema import CreateTable

from workers.configuration import InputError, StorageError

Row = sa.RowMapping
ATTEMPTS = 5
"""Of a write that others may cross."""


class Database:
    """Connections to the database behind a SQLAlchemy URL."""

    def __init__(self, url: str, tables: sa.MetaData) -> None:
        """Connect and make the tables where they are missing."""
        self._engine = _engine(url)
        self._shown = self._engine.url.render_as_string(hide_password=True)
        self._file: tuple[int, int] | None = None
        """Of SQLite: which file it is."""
        for table in tables.sorted_tables:
            # PostgreSQL: an IntegrityError says that another process made it in this moment.
            with suppress(exc.IntegrityError), self.transaction() as connection:
                connection.execute(CreateTable(table, if_not_exists=True))

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Commits at the end; StorageError of one line where the database fails."""
        self._follow_file()
        try:
            with self._engine.begin() as connection:
                yield connection
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as error:
            raise self._failed(error) from None

    def rows(self, query: sa.Select[Any]) -> Sequence[Row]:
        """What a query finds."""
        with self.transaction() as connection:
            return connection.execute(query).mappings().all()

    def insert(self, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert a row; False where there is one of its primary key, StorageError where the
        database refuses it for anything else."""
        try:
            with self.transaction() as connection:
                connection.execute(sa.insert(table), dict(row))
        except exc.IntegrityError as error:
            if not self.rows(sa.select(sa.true()).where(*_same_key(table, row))):
                raise self._failed(error) from None
            return False
        return True

    def attempt(self, work: Callable[[sa.Connection], None]) -> None:
        """Do `work` in a transaction of its own, again where others wrote the same rows in this
        moment. StorageError where that does not end, so that it was something else."""
        for left in reversed(range(ATTEMPTS)):
            try:
                with self.transaction() as connection:
                    return work(connection)
            except exc.IntegrityError as error:
                if not left:
                    raise self._failed(error) from None
        return None

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    def _failed(self, error: exc.DBAPIError) -> StorageError:
        return StorageError(f"store {self._shown}: {str(error.orig).strip().splitlines()[0]}")

    def _follow_file(self) -> None:
        """Of SQLite: leave a file that was replaced, which open connections would go on reading;
        and make none in the place of one that is gone: an empty one knows no keys."""
        path = self._engine.url.database
        if self._engine.dialect.name != "sqlite" or not path or path == ":memory:":
            return
        try:
            stat = Path(path).stat()
        except OSError as error:
            if self._file is None:  # there is none yet
                return
            raise StorageError(f"store {self._shown}: {error.strerror}") from None
        if self._file != (stat.st_dev, stat.st_ino):
            self._engine.dispose()
            self._file = (stat.st_dev, stat.st_ino)


def _same_key(table: sa.Table, row: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [column == row[column.name] for column in table.primary_key]


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
