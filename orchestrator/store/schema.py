"""Every table of ours in the database that holds Optuna's. Loaded only when it is used.

Whoever changes one adds a migration to `migrations/versions` and its name to `REVISIONS`.
"""

import sqlalchemy as sa

REVISIONS = ("v1", "v2")
"""Of the migrations, oldest first. Those of no other are known here."""
REVISION = REVISIONS[-1]
"""Which tables this code reads and writes."""
REVISION_TABLE = "moetune_alembic_version"
"""Says which revision a store has. Optuna keeps its own in `alembic_version`."""
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

# Rows are inserted, and never changed. The key makes an insert the compare-and-set: of two writers
# that have both seen revision n, one gets n + 1 and the other an integrity error. A name's last row
# stays, also of one that was deleted: revisions only grow.
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

# What versions were measured on after their training, in order.
EVALUATIONS = sa.Table(
    "moetune_evaluations",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("asked", sa.JSON, nullable=False),
    sa.Column("figures", sa.JSON, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)

# Versions whose row is gone, and whose files go next: what finishes a deletion that was cut off
# knows by it that there was one.
REMOVED = sa.Table(
    "moetune_removed", METADATA, sa.Column("digest", sa.String(64), primary_key=True)
)

KEYS = sa.Table(
    "moetune_keys",
    METADATA,
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

# Each gateway writes its own totals, never differences: written twice, they are the same.
SPENT = sa.Table(
    "moetune_spent",
    METADATA,
    sa.Column("gateway", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(16), primary_key=True),
    sa.Column("window", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("save", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)
# Who did what to which key, in order; the newest entry tells a last key that was deleted from a
# table that was emptied.
KEY_LOG = sa.Table(
    "moetune_key_log",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("act", sa.String(16), nullable=False),
    sa.Column("key", sa.String(16), nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.String(200), nullable=False),
)

# What gateways say of themselves: each its own row, written anew again and again.
SERVING = sa.Table(
    "moetune_serving",
    METADATA,
    sa.Column("gateway", sa.String(32), primary_key=True),
    sa.Column("names", sa.JSON, nullable=False),
    sa.Column("beats", sa.BigInteger, nullable=False),
)
