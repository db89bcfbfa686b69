"""Locks that belong to a store: one process on any machine holds each. Loaded only when it is used.

PostgreSQL keeps them with a connection, SQLite with a file beside its own; both let go when the
process that holds one dies.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

import sqlalchemy as sa
from filelock import lock_descriptor
from sqlalchemy.exc import DBAPIError

from orchestrator.store.connections import engine_of
from workers.config.base import InputError, StorageError

Take = Callable[[], bool]
"""Takes a lock, or finds it taken by this process; False where another has it."""
MAKING_SECONDS = 120.0
"""How long one process waits while another makes the tables."""
_LOOK_SECONDS = 0.1
_TRY = "SELECT pg_try_advisory_lock(:key)"


class Held(InputError):  # noqa: N818
    """Another process has the lock."""


@contextmanager
def store_lock(url: str, name: str, patience: float = 0.0) -> Iterator[Take]:
    """Hold the lock `name` of the store; Held where another process has it for longer than
    `patience` seconds. A server that restarts forgets it: what is yielded takes it again. Raises
    what the database raises."""
    end = time.monotonic() + patience
    with _lock(url, name) as take:
        while not take():
            if time.monotonic() >= end:
                raise Held(f"another process has the lock {name}")
            time.sleep(_LOOK_SECONDS)
        yield take


@contextmanager
def _lock(url: str, name: str) -> Iterator[Take]:
    # Without a pool the lock ends with the connection, which is in no transaction meanwhile.
    engine = engine_of(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    dialect, file = engine.dialect.name, engine.url.database
    if dialect == "sqlite" and (not file or file == ":memory:"):
        yield lambda: True  # nobody else sees it
    elif dialect == "sqlite" and file:
        with _opened(f"{os.path.realpath(file)}.{name}.lock") as beside:
            yield partial(lock_descriptor, beside.fileno(), blocking=False)
    else:
        with engine.connect() as connection:
            yield _server_lock(connection, sa.text(_TRY).bindparams(key=_number(name)))


def _server_lock(connection: sa.Connection, query: sa.TextClause) -> Take:
    def take() -> bool:
        try:
            return bool(connection.execute(query).scalar())
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        connection.rollback()  # what SQLAlchemy wants before it connects again
        return bool(connection.execute(query).scalar())

    return take


def _opened(path: str) -> IO[str]:
    try:
        return open(path, "a")
    except OSError as error:
        raise StorageError(f"store sqlite:///{path}: cannot be used: {error.strerror}") from None


def _number(name: str) -> int:
    """Of 63 bits: what PostgreSQL calls its locks by."""
    return int.from_bytes(hashlib.sha256(f"moetune {name}".encode()).digest()[:8]) >> 1
