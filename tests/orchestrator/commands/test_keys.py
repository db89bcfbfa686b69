"""The endpoint's keys: the operator's, and those of the registry. No cluster is needed."""

import json
import secrets
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from orchestrator import cli
from orchestrator.auth.key_store import FORGOTTEN_SECONDS, KeyStore
from orchestrator.auth.keys import SCOPES, Caller, Key, KeyRing, Scope, key_hash
from orchestrator.auth.made_keys import MadeKeys, check_keys
from orchestrator.auth.operator_key import read_key
from orchestrator.auth.rate_limit import Spent
from orchestrator.config.limits import Allowance
from orchestrator.config.serve import ServeSpec
from orchestrator.registry.log import this_user
from orchestrator.replicas.endpoint import EndpointSpec
from orchestrator.store.schema import SPENT
from workers.config.base import InputError, StorageError
from workers.config.model import ModelSpec
from workers.engine.request import Limits, RequestError


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOETUNE_API_KEY", "MOETUNE_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_key_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_key() is None
    (tmp_path / "key").write_text("from-the-file\n")
    monkeypatch.setenv("MOETUNE_API_KEY_FILE", str(tmp_path / "key"))
    assert read_key() == "from-the-file"
    monkeypatch.setenv("MOETUNE_API_KEY", "from-the-environment")
    assert read_key() == "from-the-environment"


@pytest.mark.parametrize("key", ["schlüssel-schlüssel", "two words of sixteen", "line\nline", "\n"])
def test_a_key_that_no_header_carries_is_refused_unseen(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOETUNE_API_KEY", key)
    with pytest.raises(InputError, match="printable ASCII") as caught:
        read_key()
    assert not key.strip() or key.strip()[:4] not in str(caught.value)


def test_an_empty_key_file_leaves_no_endpoint_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").touch()
    monkeypatch.setenv("MOETUNE_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(InputError, match="MOETUNE_API_KEY_FILE"):
        read_key()


def test_a_replica_holds_as_many_adapters_as_the_job_says() -> None:
    spec = EndpointSpec(
        serve=ServeSpec(max_adapters=3, share_prefixes=True),
        model=ModelSpec(path="x"),
        store_url="",
        storage="",
    )
    assert spec.limits().max_adapters == 3
    assert spec.limits().share_prefixes
    assert not Limits().share_prefixes


SECRET = "mt-0123456789abcdef"


def kept(scopes: str = "infer", **fields: Any) -> Key:
    caller = Caller("k-1", frozenset(cast(list[Scope], scopes.split(","))), None, None)
    return Key(key_hash(SECRET), caller, "for a test", datetime.now(UTC), **fields)


def status(ring: KeyRing, authorization: str, scope: Scope = "infer") -> int:
    try:
        ring.admit(authorization, scope)
    except RequestError as error:
        return error.status
    return 200


def ring_of(*keys: Key, operator: str | None = None) -> KeyRing:
    ring = KeyRing(operator, lambda: keys)
    ring.refresh()
    return ring


def test_scopes_open_what_they_say() -> None:
    given = f"Bearer {SECRET}"
    table = {
        "infer": (200, 403, 403),
        "promote": (403, 200, 403),
        "infer,promote": (200, 200, 403),
        "admin": (200, 200, 200),
    }
    for scopes, expected in table.items():
        ring = ring_of(kept(scopes))
        assert tuple(status(ring, given, scope) for scope in SCOPES) == expected
        assert status(ring, "") == status(ring, "Bearer wrong") == status(ring, SECRET) == 401


def test_without_any_key_everybody_may_ask_and_nobody_may_change() -> None:
    assert [status(KeyRing(), "", scope) for scope in SCOPES] == [200, 401, 401]
    assert [status(ring_of(), "", scope) for scope in SCOPES] == [200, 401, 401]
    revoked = ring_of(kept(revoked=datetime.now(UTC)))
    assert status(revoked, "") == 401  # a key was made once: the endpoint is no longer open
    operators = ring_of(operator=key_hash("operator"))
    assert status(operators, "") == 401
    assert status(operators, "bearer operator", "admin") == 200


def test_keys_that_vanish_leave_no_endpoint_open(tmp_path: Path) -> None:
    """The last known ones go on, whatever became of the table, and of the folder."""
    (tmp_path / "no-folder").touch()
    given = f"Bearer {SECRET}"
    for gone in (lambda: (), lambda: 1 / 0):
        keys: list[Any] = [lambda: (kept(),), gone, gone]
        read = MadeKeys(lambda keys=keys: keys.pop(0)(), tmp_path / "no-folder")  # type: ignore[misc]
        ring = KeyRing(None, read)
        for _ in range(3):
            ring.refresh()
            assert (status(ring, ""), status(ring, given)) == (401, 200)
            assert not ring.open


def test_a_registry_that_was_emptied_opens_no_new_gateway(tmp_path: Path) -> None:
    """Another process, or the same one started again: it has seen no key."""
    file = tmp_path / "moetune.db"

    def fresh() -> KeyRing:
        ring = KeyRing(None, MadeKeys(lambda: KeyStore(f"sqlite:///{file}").all(), tmp_path))
        ring.refresh()
        return ring

    assert status(fresh(), "") == 200  # no key was ever made
    KeyStore(f"sqlite:///{file}").add(kept())
    assert status(fresh(), "") == 401
    file.unlink()
    emptied = fresh()
    assert (status(emptied, ""), emptied.settled, emptied.open) == (503, False, False)
    with pytest.raises(InputError, match=r"holds none.*keys-were-made.*moetune keys create"):
        check_keys(f"sqlite:///{file}", tmp_path)
    KeyStore(f"sqlite:///{file}").add(kept())
    check_keys(f"sqlite:///{file}", tmp_path)
    assert status(fresh(), f"Bearer {SECRET}") == 200
    file.unlink()
    (tmp_path / "keys-were-made").unlink()  # what the operator may do
    assert status(fresh(), "") == 200


def test_a_running_gateway_keeps_its_keys_while_the_file_is_gone_or_another(
    tmp_path: Path,
) -> None:
    file, given = tmp_path / "moetune.db", f"Bearer {SECRET}"
    store = KeyStore(f"sqlite:///{file}")
    store.add(kept())
    ring = KeyRing(None, MadeKeys(store.all, tmp_path))

    def now() -> tuple[int, int]:
        ring.refresh()
        return status(ring, ""), status(ring, given)

    assert now() == (401, 200)
    file.unlink()
    assert now() == (401, 200)
    assert not file.exists()  # an empty one would know no keys
    for content in (b"", b"no database at all, but some text in its place"):
        file.write_bytes(content)
        assert now() == (401, 200)
    file.unlink()
    other = KeyStore(f"sqlite:///{file}")
    assert now() == (401, 200)
    other.add(kept(revoked=datetime.now(UTC)))
    other.revoke("k-1", datetime.now(UTC))
    assert now() == (401, 401)  # it reads the new file, and not the one that it had open
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM moetune_keys")
    connection.close()
    assert now() == (401, 401)


def test_the_last_key_that_is_deleted_opens_an_endpoint_again_and_no_other_way_does(
    tmp_path: Path, moetune: Callable[..., "Ran"]
) -> None:
    url = f"sqlite:///{tmp_path}/moetune.db"
    store = KeyStore(url)
    ring = KeyRing(None, MadeKeys(store.all, tmp_path, store.given_up))

    def fresh() -> KeyRing:
        other = KeyRing(None, MadeKeys(store.all, tmp_path, store.given_up))
        other.refresh()
        return other

    def now() -> tuple[int, int]:
        """Of a gateway that runs, and of one that starts."""
        ring.refresh()
        return status(ring, ""), status(fresh(), "")

    assert now() == (200, 200)
    first, second = (moetune("create").err.split()[1].rstrip(":") for _ in range(2))
    assert now() == (401, 401)
    assert moetune("revoke", first).code == 0
    assert moetune("delete", first).err == ""
    assert now() == (401, 401)
    moetune("revoke", second)
    assert now() == (401, 401)
    gone = moetune("delete", second, "--reason", "back to myself\x1b alone")
    assert gone.code == 2  # a reason is on one line, of what can be printed
    gone = moetune("delete", second, "--reason", "back to myself")
    assert (gone.out, gone.err[:18]) == (f"key {second} is deleted\n", "it was the last: a")
    assert now() == (200, 200)
    assert not (tmp_path / "keys-were-made").exists()
    check_keys(url, tmp_path)
    last = json.loads(moetune("history", "--json").out)[-1]
    assert (last["act"], last["key"], last["reason"]) == ("delete", second, "back to myself")
    assert last["actor"] == this_user()
    moetune("create")
    assert now() == (401, 401)
    with sqlite3.connect(tmp_path / "moetune.db") as connection:
        connection.execute("DELETE FROM moetune_keys")  # lost, after another one was deleted
    connection.close()
    assert now() == (401, 503)
    (tmp_path / "keys-were-made").unlink()
    assert now()[0] == 401
    store.close()


def test_a_key_that_is_made_is_remembered_beside_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["moetune", "keys", "create", "--storage", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert (tmp_path / "keys-were-made").read_text() == ""


def test_expired_and_revoked_keys_open_nothing() -> None:
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    assert status(ring_of(kept(expires=now + hour)), f"Bearer {SECRET}") == 200
    assert status(ring_of(kept(expires=now - hour)), f"Bearer {SECRET}") == 401
    assert status(ring_of(kept(revoked=now)), f"Bearer {SECRET}") == 401


def test_an_outage_keeps_the_last_known_keys_and_opens_nothing_where_none_was_known() -> None:
    away = False

    def read() -> list[Key]:
        if away:
            raise InputError("the database is away")
        return [kept()]

    ring, fresh = KeyRing(None, read), KeyRing(key_hash("operator"), read)
    assert status(ring, f"Bearer {SECRET}") == 503
    ring.refresh()
    away = True
    ring.refresh()
    fresh.refresh()
    assert status(ring, f"Bearer {SECRET}") == 200
    assert status(ring, "") == 401
    assert status(fresh, f"Bearer {SECRET}") == 503
    assert status(fresh, "Bearer operator") == 200


def test_keys_are_kept_as_hashes_and_come_back_as_they_were(tmp_path: Path) -> None:
    store = KeyStore(f"sqlite:///{tmp_path}/moetune.db")
    allowances = Allowance(60, "min"), Allowance(10**6, "day")
    caller = Caller("k-2", frozenset({"infer", "promote"}), *allowances)
    key = replace(kept(), caller=caller, expires=datetime.now(UTC))
    store.add(key)
    assert store.all() == [key]
    with pytest.raises(InputError, match="one already"):
        store.add(key)
    store.revoke("k-2", datetime.now(UTC))
    assert [key.valid(key.created) for key in store.all()] == [False]
    with pytest.raises(InputError, match="was revoked"):
        store.revoke("k-2", datetime.now(UTC))
    with pytest.raises(InputError, match="there is none"):
        store.revoke("k-3", datetime.now(UTC))
    store.close()
    assert SECRET.encode() not in (tmp_path / "moetune.db").read_bytes()


TODAY = int(datetime.now(UTC).timestamp()) // 86400 * 86400


def test_usage_adds_up_in_the_database(store: str) -> None:
    """Totals of two gateways: saved twice, cut off, out of order, and by one that is gone."""
    keys, gateway = KeyStore(store), secrets.token_hex(8)
    mine, other, past = ("k-1", TODAY), ("k-2", TODAY), ("k-1", 0)
    assert keys.exchange(gateway, 0, {mine: Spent(5, 2), other: Spent(7), past: Spent(9)}) == {}
    assert keys.exchange("another", 0, {mine: Spent(1)}) == {mine: 7, other: 7}
    for save in (3, 3, 2):  # again, and an older one that comes last
        keys.exchange(gateway, save, {mine: Spent(6 + save, 0)})
    assert keys.exchange("another", 1, {}) == {mine: 9, other: 7}
    assert keys.usage() == {mine: 10, other: 7}  # what is long over is not read
    keys.close()


def test_what_a_silent_gateway_has_reserved_is_free_again(store: str) -> None:
    """By the clock of who looks: the silent one's may be an hour wrong, and its host's too."""
    now = 0.0
    mine, key = KeyStore(store, lambda: now), ("k-1", TODAY)
    for number, wrong in enumerate((0, 3600, -3600)):
        other = f"other-{number}"
        with mine._database.transaction() as connection:
            connection.execute(sa.delete(SPENT))

        def save(number: int, other: str = other, wrong: int = wrong) -> int:
            mine.exchange(other, number, {key: Spent(9, 50)})
            with mine._database.transaction() as connection:
                connection.execute(sa.update(SPENT).values(at=SPENT.c.at + wrong))
            return mine.exchange("mine", number, {})[key]

        save(0)
        for second in range(1, 4):
            now += FORGOTTEN_SECONDS / 2
            assert save(second) == 59
        now += FORGOTTEN_SECONDS + 1
        assert mine.exchange("mine", 9, {})[key] == 9
        assert mine.usage()[key] == 9
        assert save(4) == 59  # it was away only
    with mine._database.transaction() as connection:
        connection.execute(sa.update(SPENT).values(at=SPENT.c.at - 1800))
    assert KeyStore(store).exchange("mine", 0, {})[key] == 9  # who comes anew does not wait for it
    mine.close()


def test_two_saves_of_one_gateway_at_once_charge_once(store: str) -> None:
    keys, gateway, key = KeyStore(store), secrets.token_hex(8), secrets.token_hex(4)
    with ThreadPoolExecutor(8) as pool:
        for save in range(40):
            pool.submit(keys.exchange, gateway, save, {(key, TODAY): Spent(save, 1)})
    assert keys.usage()[key, TODAY] == 39
    keys.close()


def test_usage_that_the_database_refuses_is_not_dropped(tmp_path: Path) -> None:
    """The limiter keeps what was not saved, and tries again: it must hear of it."""
    store, spent = KeyStore(f"sqlite:///{tmp_path}/moetune.db"), {("k-1", TODAY): Spent(5)}
    with sqlite3.connect(tmp_path / "moetune.db") as database:
        database.execute("DROP TABLE moetune_spent")
        columns = 'gateway, "key", "window", used, reserved, save, at, colour NOT NULL'
        database.execute(f"CREATE TABLE moetune_spent ({columns})")
    with pytest.raises(StorageError, match=r"NOT NULL constraint failed: .*colour"):
        store.exchange("g", 0, spent)
    with sqlite3.connect(tmp_path / "moetune.db") as database:
        database.execute("ALTER TABLE moetune_spent DROP COLUMN colour")
    store.exchange("g", 0, spent)
    assert store.usage() == {("k-1", TODAY): 5}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def moetune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """moetune(*arguments): `moetune keys` with the registry in `tmp_path`."""

    def run(*arguments: str) -> Ran:
        argv = ["moetune", "keys", *arguments, "--storage", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        said = capsys.readouterr()
        return Ran(int(exit_.value.code or 0), said.out, said.err)

    return run


def test_the_commands_make_list_and_revoke_keys(
    moetune: Callable[..., Ran], tmp_path: Path
) -> None:
    options = ("--scope", "infer,promote", "--rate", "60/min", "--quota", "9/day", "--note", "CI")
    made = moetune("create", *options, "--expires", "30d")
    key = made.out.strip()
    assert key.startswith("mt-")
    assert len(key) > 40
    [shown] = json.loads(moetune("list", "--json").out)
    assert shown["id"] in made.err
    assert key not in made.err
    given = [shown[name] for name in ("state", "scopes", "rate", "quota", "used", "note")]
    assert given == ["valid", "infer,promote", "60/min", "9/day", 0, "CI"]
    ring = KeyRing(None, KeyStore(f"sqlite:///{tmp_path}/moetune.db").all)
    ring.refresh()
    assert ring.admit(f"Bearer {key}", "promote").id == shown["id"]
    assert moetune("revoke", shown["id"]).code == 0
    ring.refresh()
    assert status(ring, f"Bearer {key}") == 401
    table = moetune("list").out
    assert "revoked" in table
    assert key not in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "--scope", "all"), "allowed are infer, promote, admin"),
        (("create", "--scope", ""), "allowed are"),
        (("create", "--rate", "often"), "60/min"),
        (("create", "--expires", "soon"), "30d"),
        (("create", "--note", "two\nlines"), "one line"),
        (("revoke", "k-nobody"), "there is none"),
        (("delete", "k-nobody"), "there is none"),
        (("revoke", "k-\x1b[2J\u202e"), "k-\\x1b[2J\\u202e"),
    ],
)
def test_the_commands_refuse_in_one_line(
    arguments: tuple[str, ...], said: str, moetune: Callable[..., Ran]
) -> None:
    ran = moetune(*arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
