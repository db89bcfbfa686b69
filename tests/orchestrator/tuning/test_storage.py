"""The store of studies: made once, by whoever comes first, and no matter where it lies."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier, Timer

import optuna
import pytest
import sqlalchemy as sa

from orchestrator.auth.key_store import KeyStore
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, override_job
from orchestrator.registry.registry import Registry
from orchestrator.store.errors import StoreError
from orchestrator.tuning.lifecycle import begin, check_study, locked
from orchestrator.tuning.refusal import refusing
from orchestrator.tuning.searcher import StudySearch
from orchestrator.tuning.storage import storage, study_names
from tests.orchestrator.postgres import Postgres
from workers.config.base import InputError

RACERS = 8


def at(job: JobSpec, store: str) -> JobSpec:
    return override_job(job, {"cluster.store": store}, "test")


def tables(store: str) -> list[str]:
    engine = sa.create_engine(store)
    with closing(engine.connect()) as connection:
        found = sa.inspect(connection).get_table_names()
    engine.dispose()
    return found


def test_many_that_come_first_make_the_tables_once(store: str, tmp_path: Path) -> None:
    together = Barrier(3 * RACERS)

    def studies(cluster: ClusterSpec) -> list[str]:
        with storage(cluster, create=True) as opened:
            return optuna.get_all_study_names(opened)

    def after_the_others(first_use: Callable[[], object]) -> object:
        together.wait(60)
        return first_use()

    uses: list[Callable[[], object]] = [
        lambda: studies(ClusterSpec(store=store)),
        lambda: Registry(store, tmp_path).names(),
        lambda: KeyStore(store).all(),
    ]
    with ThreadPoolExecutor(3 * RACERS) as pool:
        assert [*pool.map(after_the_others, uses * RACERS)] == [[]] * 3 * RACERS
    assert {"studies", "alembic_version", "moetune_events", "moetune_keys"} <= {*tables(store)}


def test_looking_makes_nothing(job: JobSpec, postgres: Postgres) -> None:
    store = postgres.new_store()
    check_study(at(job, store), resume=False)
    assert study_names(ClusterSpec(store=store)) == []
    with pytest.raises(InputError, match="no studies there yet; run `moetune tune` first"):
        check_study(at(job, store), resume=True)
    assert tables(store) == []


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    ("revision", "advice"),
    [("v2.6.0.a", "optuna storage upgrade"), ("v9", "pip install -U optuna")],
)
def test_tables_of_another_optuna_are_refused(
    job: JobSpec, store: str, revision: str, advice: str, create: bool
) -> None:
    here = at(job, store)
    with storage(here.cluster, create=True) as opened:
        begin(here, False, opened)
        with opened.engine.begin() as connection:
            connection.execute(sa.text("UPDATE version_info SET library_version = '2.6.0'"))
            connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    refused = pytest.raises(InputError, match=rf"\(set up by optuna 2\.6\.0\).*{advice}")
    with refused, storage(here.cluster, create):
        pass


def test_another_optuna_may_have_made_the_same_tables(job: JobSpec, store: str) -> None:
    here = at(job, store)
    with storage(here.cluster, create=True) as opened:
        begin(here, False, opened)
        with opened.engine.begin() as connection:
            connection.execute(sa.text("UPDATE version_info SET library_version = '5.0.99'"))
    assert study_names(here.cluster) == ["home"]


def test_a_study_of_an_earlier_moetune_goes_on(job: JobSpec, store: str) -> None:
    here = at(job, store)
    with storage(here.cluster, create=True) as opened:
        study = begin(here, False, opened)
        noted = study.user_attrs["job"]
        del noted["train"]["data"]["metrics"]  # a field that it had not
        study.set_user_attr("job", noted)
    check_study(here, resume=True)
    other = override_job(here, {"data.metrics": {"home": "slot_f1"}}, "test")
    with pytest.raises(InputError, match=r"train\.data\.metrics\.home is 'slot_f1', was not set"):
        check_study(other, resume=True)


def test_a_study_is_run_once_whatever_folder_it_writes_to(
    job: JobSpec, store: str, tmp_path: Path
) -> None:
    here = at(job, store)
    elsewhere = override_job(here, {"cluster.storage": str(tmp_path / "elsewhere")}, "test")
    other = override_job(here, {"name": "garden"}, "test")
    with locked(here):
        with (
            pytest.raises(InputError, match="study home: another process is running it"),
            locked(elsewhere),
        ):
            pass
        with locked(other):
            pass
    with locked(elsewhere):
        pass


def test_a_study_is_run_once_whatever_way_leads_to_its_database(
    job: JobSpec, tmp_path: Path
) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far")
    (tmp_path / "far" / "link.db").symlink_to("one.db")
    ways = [f"sqlite:///{tmp_path}/{way}" for way in ("far/one.db", "near/one.db", "far/link.db")]
    with locked(at(job, ways[0])):
        for way in ways[1:]:
            with (
                pytest.raises(InputError, match="another process is running"),
                locked(at(job, way)),
            ):
                pass


@pytest.mark.parametrize("name", ["what?", "50%20x", "a{b}c", "#1 & co", "ä+ö:@[x]"])
def test_a_folder_may_have_any_name(
    name: str, job: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for cluster in (
        ClusterSpec(storage=str(tmp_path / name)),
        ClusterSpec(storage="runs", store="sqlite:///own.db"),
    ):
        with storage(cluster, create=True) as opened:
            optuna.create_study(storage=opened, study_name="home")
        assert study_names(cluster) == ["home"]
        with closing(Registry(cluster.store_url(), cluster.storage)) as registry:
            assert registry.names() == []
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert {"moetune.db", "own.db"} <= {path.name for path in (tmp_path / name).iterdir()}


def test_a_server_that_starts_anew_is_not_noticed(
    job: JobSpec, postgres: Postgres, tmp_path: Path
) -> None:
    store = postgres.new_store()
    registry = Registry(store, tmp_path, patience=60)
    with storage(ClusterSpec(store=store), create=True) as opened:
        study = begin(at(job, store), False, opened)
        assert registry.names() == []
        postgres.stop()
        later = Timer(1, postgres.start)
        later.start()
        try:
            assert study.get_trials() == []
            assert registry.names() == []
        finally:
            later.join()


def test_a_store_that_fails_ends_the_study_whatever_asks(
    job: JobSpec, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.connections.PATIENCE_SECONDS", 0.5)
    store = postgres.new_store()
    with storage(ClusterSpec(store=store), create=True) as opened:
        search = StudySearch(job, begin(at(job, store), False, opened), opened, lambda _: "")
        postgres.stop()
        try:
            with (
                pytest.raises(StoreError, match=r"the store failed: .*refused") as caught,
                refusing(search, opened.engine, lambda: True),
            ):
                search.suggest("a")
        finally:
            postgres.start()
    assert "\n" not in str(caught.value)
    assert search.refusal is caught.value


def test_a_study_that_another_process_took_meanwhile_is_left_to_it(
    job: JobSpec, postgres: Postgres
) -> None:
    """A server that restarts forgets who ran it."""
    here = at(job, postgres.new_store())
    with locked(here) as ours, storage(here.cluster, create=True) as opened:
        search = StudySearch(here, begin(here, False, opened), opened, lambda _: "")
        postgres.stop()
        postgres.start()
        with refusing(search, opened.engine, ours):
            search.suggest("a")
        with pytest.raises(InputError, match="another process is running it"), locked(here):
            pass
        postgres.stop()
        postgres.start()
        with (
            locked(here),
            pytest.raises(StoreError, match="another process has gone on with the study"),
            refusing(search, opened.engine, ours),
        ):
            search.suggest("b")


def test_a_version_that_the_store_does_not_take_fails_no_trial(job: JobSpec) -> None:
    """It was trained: with the store back, the study goes on with it."""

    def register(_: int) -> str:
        raise StoreError("the store is away")

    with storage(job.cluster, create=True) as opened:
        study = begin(job, False, opened)
        search = StudySearch(job, study, opened, register)
        search.suggest("a")
        result = {"step": 4, "steps": 4, job.search.metric: 1.0}
        with pytest.raises(StoreError, match="away"):
            search.on_trial_complete("a", result)
        assert [trial.state.name for trial in study.get_trials()] == ["RUNNING"]


def test_a_password_goes_into_no_file(
    job: JobSpec, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune pickles the study's storage with the search."""
    bare = postgres.new_store()
    monkeypatch.setenv("MOETUNE_STORE", bare.replace("me@", "me:topmost@"))
    with storage(job.cluster, create=True) as opened:
        study = begin(job, False, opened)
        assert b"topmost" not in pickle.dumps(StudySearch(job, study, opened, str))
        assert "topmost" not in str(study.user_attrs)
    assert "topmost" not in (job.study_folder() / "job.json").read_text()
    assert study_names(ClusterSpec(store=bare)) == ["home"]
