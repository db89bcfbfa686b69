"""Tables of ours in the database that holds Optuna's. Loaded only when it is used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from orchestrator.store.connections import engine_of
from orchestrator.store.errors import StoreError
from orchestrator.store.lock import MAKING_SECONDS, store_lock
from orchestrator.store.upgrade import check_known, has_columns, upgrade
from workers.config.base import StorageError
from workers.config.credentials import without_credentials

DatabaseRow = sa.RowMapping
Work = Callable[[sa.Connection], object]
"""A part of a transaction."""
ATTEMPTS = 5
"""Of a write that others may cross."""


class Database:
    """Connections to the database behind a SQLAlchemy URL."""

    def __init__(self, url: str, tables: Sequence[sa.Table], patience: float = 0.0) -> None:
        """Connect, and make or bring up to date all tables of ours, of which `tables` are used
        here. A server that is away is waited for `patience` seconds."""
        self._engine = engine_of(url, patience)
        self._shown = without_credentials(url)
        self._file: tuple[int, int] | None = None
        """Of SQLite: which file it is."""
        self._prepare(url, tables)

    def _prepare(self, url: str, tables: Sequence[sa.Table]) -> None:
        """Of several processes that come first, one does it. What cannot be written is read as it
        is where all that is used here is there."""
        with self.transaction() as connection:
            if check_known(connection, self._shown):
                return
        try:
            with (
                self._errors(),
                store_lock(url, "tables", MAKING_SECONDS),
                self.transaction() as connection,
            ):
                upgrade(connection, self._shown)
        except StorageError:
            with self.transaction() as connection:
                if not has_columns(connection, tables):
                    raise

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Commits at the end; StoreError of one line where the database fails."""
        self._follow_file()
        with self._errors(), self._engine.begin() as connection:
            yield connection

    def rows(self, query: sa.Select[Any]) -> Sequence[DatabaseRow]:
        """What a query finds."""
        with self.transaction() as connection:
            return connection.execute(query).mappings().all()

    def insert(self, table: sa.Table, row: Mapping[str, Any], *around: Work) -> bool:
        """Insert a row; False where there is one of its primary key, StoreError where the
        database refuses it for anything else. What is to be done `around` it is done before and
        after, in the same transaction: what raises there leaves all as it was."""
        try:
            with self.transaction() as connection:
                for work in around:
                    work(connection)
                connection.execute(sa.insert(table), dict(row))
                for work in around:
                    work(connection)
        except exc.IntegrityError as error:
            if not self.rows(sa.select(sa.true()).where(*_same_key(table, row))):
                raise self._failed(error) from None
            return False
        return True

    def attempt(self, work: Work) -> None:
        """Do `work` in a transaction of its own, again where others wrote the same rows in this
        moment. StoreError where that does not end, so that it was something else."""
        for left in reversed(range(ATTEMPTS)):
            try:
                with self.transaction() as connection:
                    work(connection)
                return
            except exc.IntegrityError as error:
                if not left:
                    raise self._failed(error) from None

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:  # for who knows what was written
            raise
        except exc.DBAPIError as error:
            raise self._failed(error) from None

    def _failed(self, error: exc.DBAPIError) -> StoreError:
        return StoreError(f"store {self._shown}: {str(error.orig).strip().splitlines()[0]}")

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
