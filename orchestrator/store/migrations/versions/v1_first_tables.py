"""The tables that stood before there were migrations. A store of that time has some or all of them:
what is missing is made, and no row changes."""

import sqlalchemy as sa
from alembic import op

revision = "v1"
down_revision = None

TABLES = sa.MetaData()
"""As they were then, whatever became of them."""
sa.Table(
    "moetune_versions",
    TABLES,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("study", sa.String(63), nullable=False),
    sa.Column("trial", sa.Integer),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
)
sa.Table(
    "moetune_events",
    TABLES,
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
sa.Table(
    "moetune_answers",
    TABLES,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("setting", sa.String(64), primary_key=True),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)
sa.Table("moetune_removed", TABLES, sa.Column("digest", sa.String(64), primary_key=True))
sa.Table(
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
sa.Table(
    "moetune_spent",
    TABLES,
    sa.Column("gateway", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("window", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("save", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
sa.Table(
    "moetune_key_log",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("act", sa.String(16), nullable=False),
    sa.Column("key", sa.String(16), nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.String(200), nullable=False),
)
sa.Table(
    "moetune_serving",
    TABLES,
    sa.Column("gateway", sa.String(32), primary_key=True),
    sa.Column("names", sa.JSON, nullable=False),
    sa.Column("beats", sa.BigInteger, nullable=False),
)


def upgrade() -> None:
    """Make what is missing."""
    TABLES.create_all(op.get_bind())
