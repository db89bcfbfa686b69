"""What Alembic runs around migrations: `store/upgrade.py` hands it the store's connection.

A developer who has changed `store/schema.py` writes the next migration, from a store of before, by
`alembic -x store=URL revision --autogenerate --rev-id v2 -m "What changes"`.
"""

import sqlalchemy as sa
from alembic import context

from orchestrator.store.connections import engine_of
from orchestrator.store.schema import METADATA, REVISION_TABLE


def run(connection: sa.Connection) -> None:
    """Migrate; what is Optuna's is left alone. SQLite alters a table by a copy of it (`batch`)."""
    context.configure(
        connection,
        target_metadata=METADATA,
        version_table=REVISION_TABLE,
        include_name=lambda name, kind, _: kind != "table" or name in METADATA.tables,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    with engine_of(context.get_x_argument(as_dictionary=True)["store"]).begin() as opened:
        run(opened)
