"""A store's tables: new ones, those of before there were migrations, those of a newer moetune."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from orchestrator.auth.key_store import KeyStore
from orchestrator.config.cluster import ClusterSpec
from orchestrator.registry.presence_store import PresenceStore
from orchestrator.registry.registry import Registry
from orchestrator.registry.store import Store
from orchestrator.store.errors import StoreError
from orchestrator.store.schema import METADATA, REVISION, REVISION_TABLE, REVISIONS
from orchestrator.store.upgrade import MIGRATIONS
from orchestrator.tuning.storage import storage, study_names
from tests.orchestrator.postgres import Postgres
from workers.config.base import InputError, StorageError

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "ab" * 32
AT = "2026-07-01T00:00:00+00:00"

# The tables as they were made before there were migrations; never to be changed.
REGISTRY = {
    "moetune_versions": """(
        digest VARCHAR(64) NOT NULL,
        study VARCHAR(63) NOT NULL,
        trial INTEGER,
        metrics JSON NOT NULL,
        created VARCHAR(32) NOT NULL,
        PRIMARY KEY (digest)
    )""",
    "moetune_events": """(
        name VARCHAR(63) NOT NULL,
        revision INTEGER NOT NULL,
        action VARCHAR(16) NOT NULL,
        version VARCHAR(12) NOT NULL,
        previous VARCHAR(12),
        actor VARCHAR(200) NOT NULL,
        reason TEXT NOT NULL,
        evidence JSON NOT NULL,
        at VARCHAR(32) NOT NULL,
        PRIMARY KEY (name, revision)
    )""",
    "moetune_answers": """(
        digest VARCHAR(64) NOT NULL,
        setting VARCHAR(64) NOT NULL,
        answer JSON NOT NULL,
        at VARCHAR(32) NOT NULL,
        PRIMARY KEY (digest, setting)
    )""",
}
REMOVED = {"moetune_removed": "(digest VARCHAR(64) NOT NULL, PRIMARY KEY (digest))"}
KEYS = {
    "moetune_keys": """(
        id VARCHAR(16) NOT NULL,
        hash VARCHAR(64) NOT NULL,
        scopes VARCHAR(64) NOT NULL,
        rate VARCHAR(32),
        quota VARCHAR(32),
        note VARCHAR(200) NOT NULL,
        created VARCHAR(32) NOT NULL,
        expires VARCHAR(32),
        revoked VARCHAR(32),
        PRIMARY KEY (id),
        UNIQUE (hash)
    )""",
    "moetune_spent": """(
        gateway VARCHAR(32) NOT NULL,
        "key" VARCHAR(16) NOT NULL,
        "window" BIGINT NOT NULL,
        used BIGINT NOT NULL,
        reserved BIGINT NOT NULL,
        save BIGINT NOT NULL,
        at BIGINT NOT NULL,
        PRIMARY KEY (gateway, "key", "window")
    )""",
    "moetune_key_log": """(
        number {serial} NOT NULL,
        at VARCHAR(32) NOT NULL,
        act VARCHAR(16) NOT NULL,
        "key" VARCHAR(16) NOT NULL,
        actor VARCHAR(200) NOT NULL,
        reason VARCHAR(200) NOT NULL,
        PRIMARY KEY (number)
    )""",
}
PRESENCE = {
    "moetune_serving": """(
        gateway VARCHAR(32) NOT NULL,
        names JSON NOT NULL,
        beats BIGINT NOT NULL,
        PRIMARY KEY (gateway)
    )"""
}
ROWS = {
    "moetune_versions": f"('{DIGEST}', 's', 3, '{{\"loss\": 0.5}}', '{AT}')",
    "moetune_events": f"('home', 1, 'promote', '{DIGEST[:12]}', NULL, 'ann', 'x', '{{}}', '{AT}')",
    "moetune_answers": f"('{DIGEST}', 'greedy', '\"yes\"', '{AT}')",
    "moetune_removed": f"('{'cd' * 32}')",
    "moetune_keys": f"('k-1', '{'0' * 64}', 'chat', NULL, NULL, 'for ann', '{AT}', NULL, NULL)",
    "moetune_spent": "('g', 'k-1', 1, 5, 0, 1, 1)",
    "moetune_key_log": f"(1, '{AT}', 'create', 'k-1', 'ann', '')",
    "moetune_serving": "('g', '[\"home\"]', 7)",
}
BEFORE = {
    "whole": {**REGISTRY, **REMOVED, **KEYS, **PRESENCE},
    "without keys and gateways": {**REGISTRY, **REMOVED},
    "from before deletions": REGISTRY,
    "keys alone": KEYS,
}


@contextmanager
def connected(store: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(store)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def make(store: str, tables: dict[str, str]) -> None:
    """A store of these tables, with a row in each."""
    with connected(store) as connection:
        serial = {"sqlite": "INTEGER", "postgresql": "SERIAL"}[connection.dialect.name]
        for name, columns in tables.items():
            connection.exec_driver_sql(f"CREATE TABLE {name} {columns.replace('{serial}', serial)}")
            connection.exec_driver_sql(f"INSERT INTO {name} VALUES {ROWS[name]}")


def rows(store: str) -> dict[str, list[tuple[object, ...]]]:
    """All that the store's tables hold, Optuna's left out."""
    with connected(store) as connection:
        there = sa.inspect(connection).get_table_names()
        return {
            name: [tuple(row) for row in connection.execute(sa.text(f"SELECT * FROM {name}"))]
            for name in there
            if name.startswith("moetune_")
        }


def check(store: str) -> None:
    """Its tables are those that the code says, column by column."""
    with connected(store) as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", MIGRATIONS)
        command.check(config)


@pytest.mark.parametrize("before", BEFORE)
def test_a_store_of_before_is_taken_over_with_its_rows(
    before: str, store: str, tmp_path: Path
) -> None:
    make(store, BEFORE[before])
    held = rows(store)
    with closing(Registry(store, tmp_path)) as registry:
        assert [version.digest for version in registry.versions()] == [DIGEST] * (
            "moetune_versions" in held
        )
    missing = {name: [] for name in METADATA.tables.keys() - held.keys()}
    assert rows(store) == {**held, **missing, REVISION_TABLE: [(REVISION,)]}
    check(store)
    with closing(KeyStore(store)) as keys:
        assert [key.caller.id for key in keys.all()] == ["k-1"] * ("moetune_keys" in held)


def test_a_store_of_the_first_migration_gets_the_tables_that_came_later(
    store: str, tmp_path: Path
) -> None:
    with connected(store) as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", MIGRATIONS)
        command.upgrade(config, "v1")
        for name, row in ROWS.items():
            connection.exec_driver_sql(f"INSERT INTO {name} VALUES {row}")
    held = rows(store)
    with closing(Registry(store, tmp_path)) as registry:
        [version] = registry.versions()
        registry.keep_evaluation(version, {"data": "a"}, {"base": {"loss": float("nan")}})
        [kept] = registry.evaluations(version)
    assert (kept.asked, kept.figures) == ({"data": "a"}, {"base": {"loss": None}})
    check(store)
    assert {name: rows(store)[name] for name in ROWS} == {name: held[name] for name in ROWS}


def test_new_log_entries_come_after_those_of_before(store: str) -> None:
    """Those of PostgreSQL are numbered by a sequence, which the table brings along."""
    make(store, {name: text for name, text in KEYS.items() if name != "moetune_key_log"})
    with connected(store) as connection:
        serial = {"sqlite": "INTEGER", "postgresql": "SERIAL"}[connection.dialect.name]
        columns = KEYS["moetune_key_log"].replace("{serial}", serial)
        connection.exec_driver_sql(f"CREATE TABLE moetune_key_log {columns}")
        connection.exec_driver_sql(
            'INSERT INTO moetune_key_log (at, act, "key", actor, reason)'
            f" VALUES ('{AT}', 'create', 'k-1', 'ann', '')"
        )
    with closing(KeyStore(store)) as keys:
        keys.revoke("k-1", datetime.now(UTC), "bob")
        assert [(one["number"], one["act"]) for one in keys.log()] == [(1, "create"), (2, "revoke")]


def test_a_new_store_has_the_tables_that_the_code_says(store: str, tmp_path: Path) -> None:
    with storage(ClusterSpec(store=store), create=True) as opened:
        optuna.create_study(storage=opened, study_name="home")
    with closing(PresenceStore(store)):
        check(store)
    with connected(store) as connection:
        theirs = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars()
        assert REVISION not in theirs.all()
    assert study_names(ClusterSpec(store=store)) == ["home"]


def test_optuna_makes_its_tables_beside_ours(store: str) -> None:
    PresenceStore(store).close()
    with storage(ClusterSpec(store=store), create=True) as opened:
        optuna.create_study(storage=opened, study_name="home")
    check(store)
    assert study_names(ClusterSpec(store=store)) == ["home"]


def test_the_code_knows_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    directory = ScriptDirectory.from_config(config)
    assert directory.get_heads() == [REVISION]
    assert [one.revision for one in directory.walk_revisions()] == [*reversed(REVISIONS)]


@pytest.mark.parametrize("opened", [Store, KeyStore, PresenceStore])
def test_a_store_of_a_newer_moetune_is_refused(opened: Callable[[str], object], store: str) -> None:
    PresenceStore(store).close()
    with connected(store) as connection:
        connection.exec_driver_sql(f"UPDATE {REVISION_TABLE} SET version_num = 'v99'")
        connection.exec_driver_sql("DROP TABLE moetune_spent")
    held = rows(store)
    refused = r"^store .*: a newer moetune has changed its tables \(to v99; this one knows them up "
    with pytest.raises(InputError, match=refused) as caught:
        opened(store)
    assert not isinstance(caught.value, StorageError), "no use to try again"
    assert len(str(caught.value).splitlines()) == 1
    assert rows(store) == held


def test_a_newer_store_is_refused_where_its_lock_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path}/moetune.db"
    PresenceStore(store).close()
    with connected(store) as connection:
        connection.exec_driver_sql(f"UPDATE {REVISION_TABLE} SET version_num = 'v99'")

    def none(*_: object) -> None:
        raise StoreError("no lock to be had here")

    monkeypatch.setattr("orchestrator.store.database.store_lock", none)
    with pytest.raises(InputError, match="a newer moetune has changed its tables"):
        Store(store)


@pytest.mark.usefixtures("processes")
def test_a_newer_store_ends_a_command_in_one_line(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/moetune.db"
    PresenceStore(store).close()
    with connected(store) as connection:
        connection.exec_driver_sql(f"UPDATE {REVISION_TABLE} SET version_num = 'v99'")
    code = "from orchestrator.cli import main; main()"
    arguments = ["models", "--storage", str(tmp_path)]
    done = run([sys.executable, "-c", code, *arguments])
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "a newer moetune has changed its tables" in line


def test_a_migration_that_fails_leaves_the_store_as_it_was(store: str, tmp_path: Path) -> None:
    """The name of a table to come is taken, behind some that could be made."""
    make(store, {"moetune_versions": REGISTRY["moetune_versions"]})
    with connected(store) as connection:
        connection.exec_driver_sql("CREATE INDEX moetune_spent ON moetune_versions (study)")
    held = rows(store)
    with closing(Registry(store, tmp_path)) as registry:
        with pytest.raises(StoreError, match=r"^store .*moetune_spent"):
            registry.versions()
        assert rows(store) == held
        with connected(store) as connection:
            connection.exec_driver_sql("DROP INDEX moetune_spent")
        assert len(registry.versions()) == 1
    check(store)


@pytest.mark.usefixtures("processes")
def test_processes_that_begin_at_once_migrate_a_store_once(store: str, tmp_path: Path) -> None:
    make(store, BEFORE["from before deletions"])
    code = """
import sys
from orchestrator.registry.store import Store
from orchestrator.auth.key_store import KeyStore
print("ready", flush=True)
input()
print(len(Store(sys.argv[1]).versions()), KeyStore(sys.argv[1]).all())
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, store],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=300)[0] for racer in racers] == ["1 []\n"] * 3
    assert rows(store)[REVISION_TABLE] == [(REVISION,)]
    check(store)


@pytest.mark.usefixtures("processes")
def test_a_store_that_is_up_to_date_costs_no_alembic(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/moetune.db"
    PresenceStore(store).close()
    code = """
import sys
from orchestrator.registry.store import Store
print(Store(sys.argv[1]).versions(), "alembic" in sys.modules)
"""
    assert run([sys.executable, "-c", code, store]).stdout == "[] False\n"


READS = """
import sys
from orchestrator.registry.store import Store
from orchestrator.auth.key_store import KeyStore
store = Store(sys.argv[1])
print([row["study"] for row in store.versions()], store.names())
for refused in (lambda: store.add_answer(dict.fromkeys(("digest", "setting", "answer", "at"), "x")),
                lambda: KeyStore(sys.argv[1])):
    try:
        refused()
    except ValueError as error:
        print(error)
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("before", ["without keys and gateways", "whole"])
def test_a_file_of_before_that_cannot_be_written_is_read(before: str, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    store = f"sqlite:///{folder}/moetune.db"
    make(store, BEFORE[before])
    (folder / "moetune.db").chmod(0o444)
    folder.chmod(0o555)
    command = [*without_roots_power(), sys.executable, "-c", READS, store]
    shown, *refused = run(command).stdout.splitlines()
    assert shown == "['s'] ['home']"
    assert refused[0] == f"store {store}: attempt to write a readonly database"
    assert len(refused) == (1 if before == "whole" else 2)
    assert REVISION_TABLE not in rows(store)


@pytest.mark.parametrize("before", ["without keys and gateways", "whole"])
def test_a_server_that_takes_no_writes_is_read(before: str, postgres: Postgres) -> None:
    store = postgres.new_store()
    make(store, BEFORE[before])
    name = sa.make_url(store).database
    with connected(store) as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with closing(Store(store)) as opened:
        assert [row["study"] for row in opened.versions()] == ["s"]
        assert opened.evaluations(DIGEST) == []
        with pytest.raises(StoreError, match="read-only transaction"):
            opened.add_answer(dict.fromkeys(("digest", "setting", "answer", "at"), "x"))
    if before == "whole":
        KeyStore(store).close()
    else:
        with pytest.raises(StoreError, match="read-only transaction"):
            KeyStore(store)
    assert REVISION_TABLE not in rows(store)


@pytest.mark.usefixtures("processes")
def test_developers_have_alembics_command(tmp_path: Path) -> None:
    """It finds the migrations by pyproject.toml."""
    alembic = [sys.executable, "-m", "alembic", "-x", f"store=sqlite:///{tmp_path}/any.db"]
    assert run([*alembic, "upgrade", "head"]).returncode == 0
    assert "No new upgrade operations detected" in run([*alembic, "check"]).stdout


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, check=False, capture_output=True, text=True)


def without_roots_power() -> list[str]:
    """Root may write any file, but for a process without that capability."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write any file, and there is no setpriv here")
    return ["setpriv", "--bounding-set=-dac_override", "--"]
