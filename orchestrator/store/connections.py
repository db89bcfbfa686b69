"""Connections to the database that holds Optuna's tables and ours. Loaded only when it is used."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from workers.config.base import InputError, one_line
from workers.config.credentials import without_credentials
from workers.config.extras import installing

BACKENDS = ("postgresql", "sqlite")
"""Databases whose locks a study can be held by, and which the tests run on."""
PATIENCE_SECONDS = 60.0
"""How long a study waits for a server that is away."""
_LONGEST_WAIT_SECONDS = 5.0
_BUSY_SECONDS = 60
"""How long a writer of SQLite waits for others."""
_ANSWER_SECONDS = 10
"""How long libpq waits for a server that does not answer at all."""


@dataclass(frozen=True)
class Connect:
    """Opens the connections of an engine; a server that is away is tried again.

    Where the URL of the engine itself has no password, and `url` finds it at each call, whoever
    pickles the engine writes none down.
    """

    url: Callable[[], str]
    patience: float = 0.0
    """Seconds of trying."""

    def __call__(self) -> Any:
        """A connection of the driver's own kind; raises the driver's errors."""
        url = sa.make_url(self.url())
        dialect = sa.create_engine(url).dialect
        args, options = dialect.create_connect_args(url)
        options = {**_defaults(dialect), **options}
        away = 0.0 if dialect.name == "sqlite" else self.patience  # what a file says, it means
        end, wait = time.monotonic() + away, 0.25
        while True:
            try:
                return dialect.connect(*args, **options)
            except dialect.loaded_dbapi.OperationalError:
                if time.monotonic() + wait > end:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def engine_options(url: str, connect: Connect) -> dict[str, Any]:
    """For SQLAlchemy's `create_engine`. Servers close connections that idle, and restart: each one
    is tried before it is used."""
    sqlite = parsed(url).get_backend_name() == "sqlite"
    return {"creator": connect, "pool_pre_ping": not sqlite}


def parsed(url: str) -> sa.URL:
    """InputError where it is no SQLAlchemy URL, or one of a database that we do not know."""
    try:
        place = sa.make_url(url)
    except (exc.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise InputError("store: is no SQLAlchemy URL, as in sqlite:///path") from None
    if place.get_backend_name() not in BACKENDS:
        shown = without_credentials(url)
        raise InputError(f"store {shown}: is neither PostgreSQL nor SQLite, and no other will do")
    return place


def engine_of(url: str, patience: float = 0.0, **options: Any) -> sa.Engine:
    """An engine for a store's URL, and the folder of a SQLite file; InputError where there is no
    driver for it, or no such folder."""
    place, shown = parsed(url), without_credentials(url)
    try:
        if place.get_backend_name() == "sqlite" and place.database:
            Path(place.database).parent.mkdir(parents=True, exist_ok=True)
        connect = Connect(lambda: url, patience)
        return sa.create_engine(shown, **engine_options(url, connect), **options)
    except (exc.ArgumentError, ImportError) as error:
        how = f"; {installing('postgres')}" if place.get_backend_name() == "postgresql" else ""
        raise InputError(f"store {shown}: no driver for it: {one_line(error)}{how}") from None
    except OSError as error:
        raise InputError(f"store {shown}: cannot be used: {error.strerror}") from None


def store_fault(error: BaseException | None) -> str | None:
    """What a database said, where that is the cause of an error, in one line."""
    while error is not None:
        if isinstance(error, exc.DBAPIError):
            return one_line(error.orig or error)
        error = error.__cause__
    return None


def _defaults(dialect: sa.Dialect) -> dict[str, Any]:
    if dialect.name == "sqlite":
        return {"timeout": _BUSY_SECONDS}
    libpq = dialect.driver in ("psycopg", "psycopg2")
    return {"connect_timeout": _ANSWER_SECONDS} if libpq else {}
