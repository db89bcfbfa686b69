"""Immutable versions, and the append-only log behind names."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.registry.log import ROUNDS, Decision, append
from orchestrator.registry.models import Event
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from workers.adapter.convert import import_folder
from workers.adapter.manifest import read_manifest
from workers.config.base import InputError, StorageError

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "fixtures" / "golden" / "mixlora_llama" / "adapter"
Put = Callable[..., Any]


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'deep' / 'moetune.db'}"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(url(tmp_path), tmp_path / "storage")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return import_folder(GOLDEN, tmp_path / "adapter")


@pytest.fixture
def put(registry: Registry, source: Path) -> Put:
    """Registers the golden adapter with the given loss: a version for each."""

    def register(trial: int = 0, loss: float = 1.0, study: str = "s", **lineage: object) -> Any:
        even = {f"layers.{layer}.mlp": (0.25,) * 4 for layer in range(2)}
        facts = {"data_digest": "d", "expert_load": even, **lineage}
        return registry.register(study, trial, source, {"validation": {"loss": loss}}, facts)

    return register


def event(registry: Registry, version: str, revision: int, name: str = "home") -> Event:
    return Event(
        name=name,
        revision=revision,
        action="promote",
        version=version,
        previous=None,
        actor="a",
        reason="r",
        evidence={},
        at=datetime.now(UTC),
    )


def test_a_version_keeps_the_adapter_and_its_lineage(registry: Registry, put: Put) -> None:
    version = put(trial=7, loss=0.5)
    assert version.id == version.digest[:12] == version.folder.name[:12]
    assert (version.study, version.trial) == ("s", 7)
    manifest = registry.manifest(version)
    assert (manifest.study, manifest.trial, manifest.data_digest) == ("s", 7, "d")
    assert manifest.metrics == version.metrics == {"validation": {"loss": 0.5}}
    assert manifest.expert_load["layers.1.mlp"] == (0.25,) * 4
    assert {path.stat().st_mode & 0o222 for path in version.folder.iterdir()} == {0}
    assert version.as_dict()["created"].startswith("20")


def test_the_same_content_is_the_same_version(registry: Registry, put: Put) -> None:
    first, again, other = put(loss=0.5), put(loss=0.5), put(loss=0.25)
    assert first == again
    assert first.id != other.id
    assert [v.id for v in registry.versions("s")] == [first.id, other.id]
    assert registry.versions("t") == []
    assert len(list(first.folder.parent.iterdir())) == 2


def test_the_source_may_go(registry: Registry, put: Put, source: Path) -> None:
    version = put()
    shutil.rmtree(source)
    registry.verify(version)


def test_another_process_sees_the_same(registry: Registry, put: Put, tmp_path: Path) -> None:
    version = put()
    promote(registry, version, "home", actor="a", metric="validation/loss")
    moved = tmp_path / "storage"
    other = Registry(url(tmp_path), moved.rename(tmp_path / "moved"))
    assert other.resolve("home").id == version.id
    assert other.resolve("home").folder.is_relative_to(tmp_path / "moved")


def test_versions_are_found_by_prefix(registry: Registry, put: Put) -> None:
    version = put()
    for id in (version.id, version.digest, version.id[:4]):
        assert registry.version(id) == version
    with pytest.raises(InputError, match="there is none in the registry"):
        registry.version("0" * 12 if version.id[0] != "0" else "1" * 12)
    for bad in ("abc", "", "../../etc", "%%%%", "A" * 12, version.digest + "0"):
        with pytest.raises(InputError, match="an id is 4 to 64 hex digits"):
            registry.version(bad)


def test_an_ambiguous_prefix_is_refused(registry: Registry, put: Put, tmp_path: Path) -> None:
    version = put()
    twin = version.digest[:20] + "f" * 44
    with sqlite3.connect(tmp_path / "deep" / "moetune.db") as database:
        database.execute(
            "INSERT INTO moetune_versions SELECT ?, study, trial, metrics, created"
            " FROM moetune_versions",
            (twin,),
        )
    with pytest.raises(InputError, match="several begin so"):
        registry.version(version.id)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a@b", ".hidden", "x" * 64, "a b", "ä", "a\n"])
def test_names_are_names(name: str, registry: Registry, put: Put) -> None:
    version = put()
    with pytest.raises(InputError, match="write 1 to 63 letters"):
        registry.history(name)
    with pytest.raises(InputError, match="write 1 to 63 letters"):
        put(study=name)
    with pytest.raises(InputError, match="write 1 to 63 letters"):
        registry.append(event(registry, version.id, 1, name))


def test_a_damaged_adapter_becomes_no_version(registry: Registry, put: Put, source: Path) -> None:
    content = (source / "adapter_model.safetensors").read_bytes()
    (source / "adapter_model.safetensors").write_bytes(content[:-9])
    with pytest.raises(InputError, match=f"{source}: adapter_model.safetensors is not the file"):
        put()
    assert registry.versions() == []
    assert list((source.parent / "storage" / "versions").iterdir()) == []


def test_a_folder_without_a_manifest_is_sent_to_import(registry: Registry) -> None:
    with pytest.raises(InputError, match="bring it in with `moetune adapter import`"):
        registry.register("s", 0, GOLDEN, {})
    with pytest.raises(InputError, match="there is no such adapter folder"):
        registry.register("s", 0, GOLDEN / "nowhere", {})


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), [1.0, float("nan")], 1j])
def test_metrics_are_numbers(value: object, registry: Registry, source: Path) -> None:
    with pytest.raises(InputError, match="study s, trial 3: metric validation/loss is"):
        registry.register("s", 3, source, {"validation": {"loss": value}})


def test_unknown_lineage_is_refused(put: Put) -> None:
    with pytest.raises(InputError, match="lineage: colour: no such field"):
        put(colour="red")


def test_a_lost_or_altered_folder_is_noticed(registry: Registry, put: Put) -> None:
    altered, lost, extended = put(loss=1.0), put(loss=2.0), put(loss=3.0)
    for name, version in (("altered", altered), ("lost", lost), ("extended", extended)):
        assert registry.append(event(registry, version.id, 1, name))
        assert registry.resolve(name) == version
    config = altered.folder / "adapter_config.json"
    config.chmod(0o644)
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    shutil.rmtree(lost.folder)
    (extended.folder / "adapter_model.bin").write_bytes(b"evil")
    for name in ("altered", "extended"):
        with pytest.raises(InputError, match="was altered"):
            registry.resolve(name)
    with pytest.raises(InputError, match="is gone"):
        registry.resolve("lost")
    with pytest.raises(InputError, match="is gone"):
        registry.append(event(registry, lost.id, 2, "lost"))
    assert put(loss=2.0) == lost, "registering it again brings it back"
    registry.verify(lost)


def test_names_resolve_to_what_was_promoted_to_them(registry: Registry, put: Put) -> None:
    first, second, never = put(loss=3.0), put(loss=2.0), put(loss=1.0)
    for version in (first, second):
        promote(registry, version, "home", actor="a", metric="validation/loss")
    assert registry.names() == ["home"]
    assert registry.champion("home") == registry.resolve("home") == second
    assert registry.champions() == {"home": second}
    assert registry.resolve(f"home@{first.id}") == first
    assert registry.resolve(f"home@{first.digest[:6]}") == first
    assert registry.champion("other") is None
    assert registry.history("other") == []
    with pytest.raises(InputError, match="was never promoted to home"):
        registry.resolve(f"home@{never.id}")
    with pytest.raises(InputError, match="nothing was promoted to this name; names are: home"):
        registry.resolve("other")
    with pytest.raises(InputError, match="an id is 4 to 64"):
        registry.resolve("home@")


def test_a_taken_revision_is_not_written(registry: Registry, put: Put) -> None:
    first, second = put(loss=2.0), put(loss=1.0)
    assert registry.append(event(registry, first.id, 1))
    assert not registry.append(event(registry, second.id, 1))
    assert [e.version for e in registry.history("home")] == [first.id]


def needs_more(folder: Path, table: str) -> None:
    """Make the table anew as another version might: with a column that must not be empty."""
    with sqlite3.connect(folder / "deep" / "moetune.db") as database:
        [(made,)] = database.execute(f"SELECT sql FROM sqlite_master WHERE name = '{table}'")
        database.execute(f"DROP TABLE {table}")
        database.execute(made.replace("(", "(colour TEXT NOT NULL, ", 1))


def test_what_the_database_refuses_is_not_taken_for_somebody_elses(
    registry: Registry, put: Put, tmp_path: Path
) -> None:
    version = put()
    needs_more(tmp_path, "moetune_events")
    with pytest.raises(StorageError, match=r"store .*: NOT NULL constraint failed: .*colour"):
        promote(registry, version, "home", actor="a", metric="validation/loss")
    needs_more(tmp_path, "moetune_versions")
    with pytest.raises(StorageError, match=r"store .*: NOT NULL constraint failed: .*colour"):
        put(loss=2.0)


def test_a_log_that_never_stands_still_is_given_up(registry: Registry, put: Put) -> None:
    version = put()

    def decide(events: list[Event]) -> Decision:
        registry.append(event(registry, version.id, len(events) + 1))  # somebody is quicker
        return Decision(action="promote", version=version.id, reason="r")

    with pytest.raises(StorageError, match=f"{ROUNDS} times others wrote into its log first"):
        append(registry, "home", "a", decide)


RACER = """
import sys, threading
from orchestrator.registry.promote import GateRefused, promote
from orchestrator.registry.registry import Registry
url, storage, actor, force, *versions = sys.argv[1:]
registry = Registry(url, storage)
def run(version):
    try:
        promote(registry, version, "home", actor=actor, metric="validation/loss",
                force=force == "yes", reason="race")
    except GateRefused:
        pass
threads = [threading.Thread(target=run, args=(version,)) for version in versions]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("force", ["yes", "no"])
def test_racing_promotions_lose_no_update(
    force: str, registry: Registry, put: Put, tmp_path: Path
) -> None:
    """Three processes of four threads each. Forced, every one must be in the log; judged, every
    champion must be better than the one before, and the best must have won."""
    versions = [put(trial=i, loss=1 + (i * 5 % 12)) for i in range(12)]
    fixed = [sys.executable, "-c", RACER, url(tmp_path), str(tmp_path / "storage")]
    racers = [
        subprocess.Popen([*fixed, f"p{i}", force, *(v.id for v in versions[i::3])], cwd=ROOT)
        for i in range(3)
    ]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0, 0]
    events = registry.history("home")
    assert [event.revision for event in events] == list(range(1, len(events) + 1))
    assert [event.previous for event in events] == [None, *(e.version for e in events[:-1])]
    if force == "yes":
        assert {event.version for event in events} == {version.id for version in versions}
        assert len(events) == 12
        assert {event.actor for event in events} == {"p0", "p1", "p2"}
    else:
        losses = {version.id: version.metrics["validation"]["loss"] for version in versions}
        line = [losses[event.version] for event in events]
        assert line == sorted(line, reverse=True)
        assert line[-1] == 1


def test_registering_at_once_gives_one_version(registry: Registry, put: Put) -> None:
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(lambda _: put(), range(6)))
    assert len({version.id for version in versions}) == len(registry.versions()) == 1
    assert [path.name for path in versions[0].folder.parent.iterdir()] == [versions[0].digest]
    registry.verify(versions[0])


@pytest.mark.usefixtures("processes")
def test_many_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    code = """import sys
from orchestrator.registry.registry import Registry
Registry(*sys.argv[1:]).names()"""
    command = [sys.executable, "-c", code, url(tmp_path), str(tmp_path)]
    racers = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [racer.wait(timeout=120) for racer in racers] == [0] * 4


def test_it_shares_a_database_with_optuna(registry: Registry, put: Put, tmp_path: Path) -> None:
    import optuna

    optuna.create_study(storage=url(tmp_path) if put() else "", study_name="s")
    promote(registry, put(), "home", actor="a", metric="validation/loss")
    with sqlite3.connect(tmp_path / "deep" / "moetune.db") as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows}
    assert {"studies", "trials", "moetune_versions", "moetune_events"} <= tables
    assert optuna.load_study(storage=url(tmp_path), study_name="s").study_name == "s"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("nonsense", "is no SQLAlchemy URL"),
        ("postgresql://host:port/db", "is no SQLAlchemy URL"),
        ("postgresql+martian://host/db", "martian://host/db: no driver for it"),
        ("mysql://host/db", "mysql://host/db: is neither PostgreSQL nor SQLite"),
        ("sqlite:////proc/nowhere/moetune.db", "moetune.db: cannot be used: No such file"),
        ("sqlite:////proc/version", "store sqlite:////proc/version"),
    ],
)
def test_an_unusable_store_is_one_clear_line(bad: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why) as refused:
        Registry(bad, tmp_path).names()
    assert "\n" not in str(refused.value)


def test_a_missing_driver_of_postgresql_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # What Python has where it finds nothing.
    with pytest.raises(InputError, match=r"no driver for it: .*psycopg.*; in .* -e '\.\[postgres"):
        Registry("postgresql+psycopg://host/db", tmp_path).names()


@pytest.mark.usefixtures("processes")
def test_the_registry_loads_without_the_heavy_packages() -> None:
    code = (
        "import sys, orchestrator.registry.promote; "
        "heavy = {'torch', 'ray', 'transformers', 'optuna', 'sqlalchemy'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert shown.strip() == "[]"


def test_what_a_killed_registration_left_goes_after_a_day(registry: Registry, put: Put) -> None:
    versions = put().folder.parent
    young, old, others = (versions / name for name in (f".{'a' * 32}", f".{'b' * 32}", ".keep"))
    for folder in (young, old, others):
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    for folder in (old, others):
        os.utime(folder, (0, 0))
    put(loss=2.0)
    assert (young.exists(), old.exists(), others.exists()) == (True, False, True)


def test_a_version_has_reached_the_disk_before_it_has_its_name(
    registry: Registry, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, Path]] = []
    named, synced = os.replace, os.fsync

    def replace(source: Path, target: Path) -> None:
        done.append(("name", target))
        named(source, target)

    def fsync(file: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{file}").readlink()))
        synced(file)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    folder = put().folder
    name = done.index(("name", folder))
    before = {path.name for kind, path in done[:name] if kind == "sync"}
    assert {path.name for path in folder.iterdir()} < before
    assert ("sync", folder.parent) in done[name:]


def test_a_version_folder_is_attached_like_any_adapter(put: Put) -> None:
    from workers.adapter.files import inspect

    version = put(trial=2)
    assert inspect(version.folder)["digest"] == version.digest
    assert read_manifest(version.folder) is not None


def test_what_a_version_was_measured_on_goes_with_it(registry: Registry, put: Put) -> None:
    version, other = put(loss=0.5), put(loss=0.25)
    for asked in ({"data": "a"}, {"data": "b"}):
        registry.keep_evaluation(version, asked, {"base": {"home": 0.5}})
    registry.keep_evaluation(other, {"data": "c"}, {"base": {"home": 0.5}})
    kept = registry.evaluations(version)
    assert [one.asked["data"] for one in kept] == ["a", "b"]
    assert kept[0].rows() == [("a", "base", "home", None, 0.5)]
    registry.remove(version, lambda _: [])
    assert registry.evaluations(version) == []
    assert len(registry.evaluations(other)) == 1
