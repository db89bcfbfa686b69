"""Deleting versions, and names with their history, on SQLite and on PostgreSQL."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec
from orchestrator.disk.deletion import delete, delete_name, delete_version
from orchestrator.registry.artifacts import VersionFiles
from orchestrator.registry.models import Event, Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import abort, promote, rollback
from orchestrator.registry.registry import Registry
from orchestrator.registry.store import Store
from orchestrator.store.schema import REVISION_TABLE
from orchestrator.tuning.lifecycle import locked
from workers.adapter.convert import import_folder
from workers.config.base import InputError, StorageError

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "fixtures" / "golden" / "mixlora_llama" / "adapter"
LOSS = "validation/loss"
Promote = Callable[..., Event]
Again = Callable[[], Version]


@pytest.fixture
def registry(store: str, tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(store, tmp_path / "storage")
    yield opened
    opened.close()


@pytest.fixture
def versions(registry: Registry, tmp_path: Path) -> list[Version]:
    """Four, each better than the one before."""
    source = import_folder(GOLDEN, tmp_path / "adapter")
    even = {f"layers.{layer}.mlp": (0.25,) * 4 for layer in range(2)}
    lineage = {"data_digest": "d", "expert_load": even}
    return [
        registry.register("s", trial, source, {"validation": {"loss": 4.0 - trial}}, lineage)
        for trial in range(4)
    ]


@pytest.fixture
def put(registry: Registry, versions: list[Version]) -> Promote:
    """put(1, "home", canary="10%"): promote a version."""

    def promoted(number: int, name: str = "home", **how: Any) -> Event:
        chosen = stage(**how)
        return promote(registry, versions[number], name, actor="ann", metric=LOSS, stage=chosen)

    return promoted


@pytest.fixture
def again(registry: Registry, tmp_path: Path) -> Again:
    """Register the first version once more."""
    lineage = {"data_digest": "d", "expert_load": {f"layers.{i}.mlp": (0.25,) * 4 for i in (0, 1)}}
    facts = {"validation": {"loss": 4.0}}
    return lambda: registry.register("s", 0, tmp_path / "adapter", facts, lineage)


def cut_off(registry: Registry, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deletion is killed between row and files."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VersionFiles, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            delete_version(registry, version.id, actor="ann")
    assert version.folder.exists()
    assert version.id not in [one.id for one in registry.versions()]


def refused(registry: Registry, version: Version, why: str) -> None:
    """It is not deleted, and nothing has changed."""
    before = registry.revision()
    with pytest.raises(InputError, match=why) as caught:
        delete_version(registry, version.id, actor="bob")
    assert "\n" not in str(caught.value)
    assert registry.revision() == before
    registry.verify(registry.version(version.id))


def gone(registry: Registry, version: Version) -> bool:
    ids = [one.id for one in registry.versions()]
    return version.id not in ids and not version.folder.exists()


def test_a_version_goes_with_its_files_row_and_answers(
    registry: Registry, versions: list[Version]
) -> None:
    first, second, *_ = versions
    for version in (first, second):
        registry.keep_answer(version.digest, "setting", ["a"])
    assert delete_version(registry, first.id, actor="ann") == [], "no log has ever named it"
    assert gone(registry, first)
    assert registry.first_answer(first.digest, "setting") is None
    assert registry.first_answer(second.digest, "setting") == ["a"]
    assert [one.id for one in registry.versions()] == [one.id for one in versions[1:]]
    assert sorted(path.name for path in second.folder.parent.iterdir()) == sorted(
        one.digest for one in versions[1:]
    )
    with pytest.raises(InputError, match=f"version {first.id}: there is none in the registry"):
        delete_version(registry, first.id, actor="ann")


def test_what_answers_or_is_fallen_back_to_stays(
    registry: Registry, versions: list[Version], put: Promote
) -> None:
    put(0)
    refused(registry, versions[0], "is the champion of home, and is not deleted")
    put(1)
    refused(registry, versions[0], "is what a rollback leads back to for home")
    put(2, plan="5%,25% every 30m")
    refused(registry, versions[2], "is the canary of home")
    put(3, shadow=True)
    refused(registry, versions[3], "is the shadow of home")
    abort(registry, "home", actor="ann")
    abort(registry, "home", actor="ann")
    for version in versions[2:]:
        delete_version(registry, version.id, actor="ann")
        assert gone(registry, version)


def test_names_that_have_had_it_are_told_and_pass_it_over(
    registry: Registry, versions: list[Version], put: Promote
) -> None:
    for number in range(3):
        put(number)
    put(0, "other")
    put(3, "other")
    put(3, "third")
    refused(registry, versions[0], "leads back to for other")
    delete_name(registry, "other", actor="ann")
    [event] = delete_version(registry, versions[0].id, actor="bob", reason="full disk")
    assert gone(registry, versions[0])
    assert (event.action, event.version, event.actor) == ("drop", versions[0].id, "bob")
    assert (event.reason, event.previous) == ("full disk", versions[2].id)
    assert registry.history("home")[-1] == event
    assert len(registry.history("third")) == 1
    with pytest.raises(InputError, match="there is none in the registry"):
        registry.resolve(f"home@{versions[0].id}")
    assert rollback(registry, "home", actor="ann").version == versions[1].id
    with pytest.raises(InputError, match="there is no earlier champion"):
        rollback(registry, "home", actor="ann")


def test_a_deleted_version_can_be_had_again(
    registry: Registry, versions: list[Version], put: Promote, again: Again
) -> None:
    for number in range(3):
        put(number)
    delete_version(registry, versions[0].id, actor="ann")
    state = registry.rollout("home")
    assert state is not None
    assert state.gone == {versions[0].id}
    back = again()
    assert back.id == versions[0].id
    promote(registry, back, "home", actor="a", metric=LOSS, force=True, reason="back")
    assert registry.resolve(f"home@{back.id}") == back
    state = registry.rollout("home")
    assert state is not None
    assert (state.champion, state.gone) == (back.id, frozenset())


def test_a_name_goes_with_its_history(
    registry: Registry, versions: list[Version], put: Promote
) -> None:
    put(0)
    put(1)
    put(0, "other")
    seen = registry.revision()
    event = delete_name(registry, "home", actor="bob", reason="over")
    assert [one.action for one in registry.history("home")] == ["delete"]
    assert registry.history("home") == [event]
    assert (event.version, event.actor, event.reason) == (versions[1].id, "bob", "over")
    assert (event.revision, event.evidence["events"]) == (3, 2)
    assert registry.revision() > seen, "who follows the registry sees that"
    assert (registry.names(), registry.deleted_names()) == (["other"], ["home"])
    assert registry.rollout("home") is None
    assert [*registry.rollouts()] == [*registry.champions()] == ["other"]
    for reference in ("home", f"home@{versions[1].id}"):
        with pytest.raises(InputError, match="home: nothing was promoted to this name; names are"):
            registry.resolve(reference)
    for version in versions:
        registry.verify(version)
    with pytest.raises(InputError, match="home: nothing was promoted to this name"):
        delete_name(registry, "home", actor="bob")
    delete_version(registry, versions[1].id, actor="bob")  # no name is in the way any more
    assert gone(registry, versions[1])


def test_a_deleted_name_can_be_used_anew(
    registry: Registry, versions: list[Version], put: Promote
) -> None:
    put(2)
    follower = Registry(registry._url, versions[0].folder.parents[1])
    assert follower.rollout("home")
    seen = [registry.revision()]
    delete_name(registry, "home", actor="bob")
    assert follower.rollout("home") is None
    seen.append(registry.revision())
    event = put(0)  # worse than the one before; nobody knows of that one any more
    seen.append(registry.revision())
    assert (event.revision, event.previous) == (3, None)
    assert seen == sorted(set(seen))
    state = follower.rollout("home")
    assert state is not None
    assert (state.champion, state.line, state.revision) == (versions[0].id, (versions[0].id,), 3)
    assert registry.deleted_names() == []
    with pytest.raises(InputError, match="was never promoted to home"):
        registry.resolve(f"home@{versions[2].id}")
    delete_name(registry, "home", actor="bob")
    [last] = registry.history("home")
    assert (last.revision, last.action) == (4, "delete")
    follower.close()


@pytest.mark.parametrize("how", [{"plan": "5%,25% every 30m"}, {"shadow": True}])
def test_a_name_with_something_on_its_way_stays(
    how: dict[str, Any], registry: Registry, put: Promote
) -> None:
    put(0)
    put(1, **how)
    with pytest.raises(InputError, match=r"home: version \w+ is its (canary|shadow); end that"):
        delete_name(registry, "home", actor="ann")
    assert len(registry.history("home")) == 2
    abort(registry, "home", actor="ann")
    delete_name(registry, "home", actor="ann")


@pytest.mark.parametrize("name", ["nobody", "../x", "../stud", "", "*", "????"])
def test_there_is_nothing_of_that_name(
    name: str, registry: Registry, versions: list[Version]
) -> None:
    for version in versions[1:]:
        delete_version(registry, version.id, actor="ann")
    others = versions[0].folder.parents[1] / "studies"
    others.mkdir()
    with pytest.raises(
        InputError, match=r"nothing was promoted to this name|write 1 to 63 letters"
    ):
        delete_name(registry, name, actor="ann")
    with pytest.raises(InputError, match="an id is 4 to 64 hex digits"):
        delete_version(registry, name, actor="ann")
    registry.verify(versions[0])
    assert others.is_dir()


def test_what_another_store_knows_stays(
    registry: Registry, versions: list[Version], put: Promote, tmp_path: Path
) -> None:
    """Who has forgotten --store, or whose registration is between files and row, loses nothing."""
    put(0)
    place = ClusterSpec(storage=str(tmp_path / "storage"), store=f"sqlite:///{tmp_path}/other.db")
    for id in (versions[0].id, versions[0].digest, versions[1].digest[:4]):
        with pytest.raises(InputError, match=f"version {id}: this store does not know it") as told:
            delete(place, id, actor="ann")
        assert "\n" not in str(told.value)
    for version in versions:
        registry.verify(registry.version(version.id))


def test_a_deletion_that_was_killed_between_row_and_files_is_finished(
    registry: Registry, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(registry, versions[0], monkeypatch)
    assert not registry.finish_removal(versions[1].id)
    assert delete_version(registry, versions[0].id, actor="ann") == []
    assert gone(registry, versions[0])
    with pytest.raises(InputError, match="there is none in the registry"):
        delete_version(registry, versions[0].id, actor="ann")


def test_a_version_that_came_again_is_no_deletion_to_finish(
    registry: Registry, versions: list[Version], again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(registry, versions[0], monkeypatch)
    assert again().id == versions[0].id
    assert not registry.finish_removal(versions[0].digest)
    registry.verify(registry.version(versions[0].id))
    delete_version(registry, versions[0].id, actor="ann")
    assert gone(registry, versions[0])


@pytest.mark.parametrize("moment", ["before the row", "before the files"])
def test_what_is_registered_while_it_is_deleted_has_its_files(
    moment: str,
    registry: Registry,
    versions: list[Version],
    again: Again,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have seen the files: the registration as there already, the deletion as its own."""
    add, remove = Store.add_version, Store.remove_version

    def late(self: Store, row: Any) -> None:
        monkeypatch.setattr(Store, "add_version", add)
        delete_version(registry, versions[0].id, actor="bob")
        add(self, row)

    def overtaken(self: Store, *which: Any) -> Any:
        written = remove(self, *which)
        again()
        return written

    if moment == "before the row":
        monkeypatch.setattr(Store, "add_version", late)
        again()
    else:
        monkeypatch.setattr(Store, "remove_version", overtaken)
        delete_version(registry, versions[0].id, actor="bob")
    registry.verify(registry.version(versions[0].id))


def test_a_database_from_before_takes_deletions(
    registry: Registry, versions: list[Version], store: str, tmp_path: Path
) -> None:
    """It has no table of them yet, nor any that came later."""
    registry.close()
    engine = sa.create_engine(store)
    with engine.begin() as connection:
        for table in ("moetune_removed", "moetune_evaluations", REVISION_TABLE):
            connection.execute(sa.text(f"DROP TABLE {table}"))
    engine.dispose()
    with closing(Registry(store, tmp_path / "storage")) as anew:
        delete_version(anew, versions[0].id, actor="ann")
        assert gone(anew, versions[0])


def test_a_deletion_that_fails_on_its_way_changes_nothing(
    registry: Registry, versions: list[Version], put: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        put(number)

    def failing(*_: object) -> Any:
        raise StorageError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.disk.deletion.next_event", failing)
        with pytest.raises(StorageError, match="no room"):
            delete_version(registry, versions[0].id, actor="ann")
    registry.verify(registry.version(versions[0].id))
    assert len(registry.history("home")) == 3


def test_a_promotion_that_was_decided_before_the_deletion_is_refused(
    registry: Registry, versions: list[Version], put: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and row were there when it looked, and are gone when it writes."""
    put(0)
    add = Store.add_event

    def late(self: Store, row: Any, version_there: bool = False) -> bool:
        delete_version(registry, versions[1].id, actor="bob")
        return add(self, row, version_there)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_event", late)
        with pytest.raises(InputError, match=f"version {versions[1].id}: has just been deleted"):
            put(1)
    assert [event.version for event in registry.history("home")] == [versions[0].id]
    assert gone(registry, versions[1])


def test_a_version_stays_while_its_study_runs(
    versions: list[Version], store: str, job: JobSpec
) -> None:
    """Where a setting comes again, a further trial gets it."""
    place = ClusterSpec(storage=str(versions[0].folder.parents[1]), store=store)
    running = job.model_copy(update={"name": "s", "cluster": place})
    with locked(running), pytest.raises(InputError, match="its study s is running"):
        delete(place, versions[0].id, actor="ann")
    delete(place, versions[0].id, actor="ann")
    assert not versions[0].folder.exists()


RACER = """
import sys
from orchestrator.disk.deletion import delete_version
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from workers.config.base import InputError
url, storage, what, *versions = sys.argv[1:]
registry = Registry(url, storage)
for version in versions:
    try:
        if what == "delete":
            delete_version(registry, version, actor="d")
        else:
            promote(registry, version, "home", actor="p", metric="validation/loss",
                    force=True, reason="race")
    except InputError as error:
        print(error)
"""


@pytest.mark.usefixtures("processes")
def test_of_a_promotion_and_a_deletion_at_once_one_wins(
    registry: Registry, store: str, tmp_path: Path
) -> None:
    """Whatever the log leads to in the end is there, whole."""
    source = import_folder(GOLDEN, tmp_path / "adapter")
    made = [
        registry.register("s", n, source, {"validation": {"loss": 9 - n / 9}}) for n in range(9)
    ]
    fixed = [sys.executable, "-c", RACER, store, str(tmp_path / "storage")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ids = [version.id for version in made]
    racers = [
        subprocess.Popen([*fixed, what, *ids], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for what in ("delete", "promote")
    ]
    for racer in racers:
        racer.communicate(timeout=120)
        assert racer.returncode == 0
    there = {version.id for version in registry.versions()}
    state = registry.rollout("home")
    for version in made:
        assert version.folder.is_dir() == (version.id in there)
    if state is not None:
        assert {state.champion, state.previous} - {None} <= there
        dropped = {e.version for e in registry.history("home") if e.action == "drop"}
        promoted = {e.version for e in registry.history("home") if e.action == "promote"}
        assert dropped == promoted - there
