"""Brings a store's tables to what this code reads and writes, by Alembic."""

import threading
from collections.abc import Sequence

import sqlalchemy as sa

from orchestrator.store.schema import REVISION, REVISION_TABLE, REVISIONS
from workers.config.base import InputError

MIGRATIONS = "orchestrator.store:migrations"
_ONE_AT_A_TIME = threading.Lock()
"""Alembic's `op` and `context` are the process's."""


def revision_of(connection: sa.Connection) -> str | None:
    """The revision of a store's tables; None for one that is new, or from before there were any."""
    if not sa.inspect(connection).has_table(REVISION_TABLE):
        return None
    query = sa.select(sa.column("version_num", sa.String)).select_from(sa.table(REVISION_TABLE))
    return connection.execute(query).scalar()


def check_known(connection: sa.Connection, shown: str) -> bool:
    """Whether the store is up to date; InputError where a newer moetune has changed its tables."""
    if (revision := revision_of(connection)) not in (None, *REVISIONS):
        raise InputError(
            f"store {shown}: a newer moetune has changed its tables (to {revision}; this one knows "
            f"them up to {REVISION}): install that one, or take another store"
        )
    return revision == REVISION


def upgrade(connection: sa.Connection, shown: str) -> None:
    """Migrate the store, all of it or nothing; InputError where a newer moetune has done so."""
    from alembic import command  # half a second, which only a store that is behind costs
    from alembic.config import Config

    check_known(connection, shown)  # another process may have been faster
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", MIGRATIONS)
    if connection.dialect.name == "sqlite":  # whose driver begins nothing for what makes tables
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    with _ONE_AT_A_TIME:
        command.upgrade(config, "head")


def has_columns(connection: sa.Connection, tables: Sequence[sa.Table]) -> bool:
    """Whether all that these tables have is there."""
    inspector = sa.inspect(connection)
    there = {*inspector.get_table_names()}
    return all(
        table.name in there
        and {*table.columns.keys()} <= {one["name"] for one in inspector.get_columns(table.name)}
        for table in tables
    )
