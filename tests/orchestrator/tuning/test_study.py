"""Reading studies back, and Optuna's side of running them, without Ray's processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, override_job
from orchestrator.tuning.lifecycle import check_study, locked
from orchestrator.tuning.storage import study_names
from orchestrator.tuning.study import Study
from workers.config.base import InputError
from workers.config.metrics import expert_load, value_at

ENDS = ["finished", "failed", "finished", "stopped", "cut", "finished"]
Play = Callable[..., list[dict[str, Any]]]


def changed(job: JobSpec, **fields: Any) -> JobSpec:
    return override_job(job, {path.replace("__", "."): v for path, v in fields.items()}, "test")


@pytest.fixture(scope="module")
def home(
    job_in: Callable[[Path], JobSpec], play: Play, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Study, list[dict[str, Any]]]:
    """A study with trials in every state, and what they were given. Only to be read."""
    job = job_in(tmp_path_factory.mktemp("home"))
    suggested = play(job, ENDS)
    return Study.open(job.cluster, "home"), suggested


Home = tuple[Study, list[dict[str, Any]]]


def test_a_leaderboard_ranks_finished_trials_and_tells_of_the_others(home: Home) -> None:
    study, suggested = home
    rows = study.leaderboard()
    assert [row.state for row in rows] == [*["finished"] * 3, "failed", "stopped", "running"]
    values = [row.value for row in rows[:3]]
    assert values == sorted(values)
    by_number = {row.number: row for row in rows}
    assert by_number[1].reason == "OutOfMemoryError: <b>CUDA</b> out of memory"
    assert by_number[1].version is None
    assert (by_number[3].steps, by_number[0].steps) == (20, 40)
    assert by_number[3].value == value_at(study.progress(3)[-1], "validation/loss")
    assert by_number[0].version == "000000000000"
    assert by_number[2].params == {
        path: suggested[2][path]
        for path in study.optuna.user_attrs["varied"]
        if path in suggested[2]
    }
    assert study.best() == rows[0]
    assert (study.folder / "trials" / "T001" / "error.txt").read_text().startswith("OutOfMemory")


def test_a_trial_that_ended_early_has_what_its_best_evaluation_gave(
    job: JobSpec, play: Play
) -> None:
    play(job, ["early", "stopped"])
    study = Study.open(job.cluster, "home")
    early, stopped = study.leaderboard()
    assert (early.state, early.steps, early.best_step, early.stopped_early) == (
        "finished", 30, 20, True,
    )  # fmt: skip
    assert early.value == 0.75
    assert early.metrics == study.progress(0)[1]
    assert early.remark == "stopped early; its best was at step 20"
    assert expert_load(study.row(0).metrics) == expert_load(study.progress(0)[1])
    assert early.version == "000000000000"
    assert (stopped.best_step, stopped.stopped_early, stopped.remark) == (None, False, None)


def test_the_largest_value_is_best_where_the_mode_says_so(job: JobSpec, play: Play) -> None:
    job = changed(job, search__metric="validation/tasks/intent/value", search__mode="max")
    play(job, ["finished"] * 4)
    values = [row.value for row in Study.open(job.cluster, "home").leaderboard()]
    assert values == sorted(values, key=lambda value: -(value or 0))


def test_optuna_sees_states_and_intermediate_values(home: Home) -> None:
    study = home[0].optuna
    assert [t.state.name for t in study.trials] == [
        "COMPLETE",
        "FAIL",
        "COMPLETE",
        "PRUNED",
        "RUNNING",
        "COMPLETE",
    ]
    assert list(study.trials[0].intermediate_values) == [10, 20, 30, 40]
    assert study.trials[0].value == study.trials[0].intermediate_values[40]
    assert study.trials[3].value == study.trials[3].intermediate_values[20]
    assert study.best_trial.number == home[0].leaderboard()[0].number


def test_versions_of_trials(home: Home, job: JobSpec, play: Play) -> None:
    study = home[0]
    best = study.best()
    assert best is not None
    assert study.version() == best.version
    assert study.version(2) == "000000000002"
    with pytest.raises(InputError, match="trial 1 has no version, it is failed: OutOfMemory"):
        study.version(1)
    with pytest.raises(InputError, match="no trial 9; it has 0 to 5"):
        study.version(9)
    play(job, ["cut"])
    with pytest.raises(InputError, match="no trial has finished yet"):
        Study.open(job.cluster, "home").version()


def test_expert_load_is_read_from_the_last_report(home: Home) -> None:
    study, suggested = home
    routed = next(n for n, values in enumerate(suggested) if values["adapter.num_experts"] > 1)
    load = expert_load(study.row(routed).metrics)
    assert len(load) == 4
    for shares in load.values():
        assert len(shares) == suggested[routed]["adapter.num_experts"]
        assert sum(shares) == pytest.approx(1)


def test_an_unknown_study_is_refused_with_those_there_are(job: JobSpec, play: Play) -> None:
    with pytest.raises(InputError, match="no studies there yet"):
        Study.open(job.cluster, "home")
    assert not Path(job.cluster.storage).exists()
    play(job, ["finished"])
    with pytest.raises(InputError, match="did you mean home"):
        Study.open(job.cluster, "hme")
    with pytest.raises(InputError, match="there is home"):
        Study.open(job.cluster, "kitchen")


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("nonsense", "is no SQLAlchemy URL"),
        ("postgresql+nosuch://host/db", "no driver"),
        ("nosuch://host/db", "is neither PostgreSQL nor SQLite"),
        ("sqlite:////proc/nothing/here.db", "no studies there yet"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(store: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Study.open(ClusterSpec(store=store), "home")


@pytest.mark.parametrize("secret", ["me:topmost@host/db", "host/db?password=topmost"])
@pytest.mark.parametrize("scheme", ["postgresql+nosuch", "nosuch"])
def test_a_password_is_not_shown(scheme: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOETUNE_STORE", f"{scheme}://{secret}")
    with pytest.raises(InputError, match=r"nosuch://.*host/db: (no driver|is neither)") as caught:
        Study.open(ClusterSpec(), "home")
    assert "topmost" not in str(caught.value)


def test_equal_seeds_make_equal_studies(job: JobSpec, play: Play, tmp_path: Path) -> None:
    first = play(job, ENDS)
    again = play(changed(job, cluster__storage=str(tmp_path / "again")), ENDS)
    other = play(changed(job, cluster__storage=str(tmp_path / "other"), search__seed=1), ENDS)
    assert first == again
    assert first != other
    assert len({str(values) for values in first}) == len(ENDS)


def test_a_study_gone_on_with_suggests_what_it_would_have(
    job: JobSpec, play: Play, tmp_path: Path
) -> None:
    whole = play(changed(job, cluster__storage=str(tmp_path / "whole")), ["finished"] * 7)
    begun = play(job, ["finished", "finished", "cut"])
    rest = play(job, ["finished"] * 5, resume=True)
    assert rest[0] == begun[2]  # the trial that was cut off comes first, with its own values
    assert begun[:2] + rest == whole
    numbers = [row.number for row in Study.open(job.cluster, "home").leaderboard()]
    assert sorted(numbers) == list(range(7))


def test_a_study_is_begun_once_and_gone_on_with_unchanged(job: JobSpec, play: Play) -> None:
    check_study(job, resume=False)
    with pytest.raises(InputError, match="no studies there yet"):
        check_study(job, resume=True)
    play(job, ["finished"])
    with pytest.raises(InputError, match=r"exists already in .*--resume"):
        check_study(job, resume=False)
    check_study(job, resume=True)
    check_study(changed(job, search__trials=20, cluster__address="auto"), resume=True)
    check_study(changed(job, evaluation__samples=0), resume=True)
    with pytest.raises(InputError, match=r"train.optimizer.lr is 0.01, was 0.0002"):
        check_study(changed(job, optimizer__lr=0.01), resume=True)
    narrower = {**job.search_space().definition, "adapter.rank": {"choice": [4, 8]}}
    with pytest.raises(InputError, match=r"search.space.adapter.rank.choice is \[4, 8\], was"):
        check_study(changed(job, search__space=narrower), resume=True)
    with pytest.raises(InputError, match=r"nothing to go on with in .*; there is home"):
        check_study(changed(job, name="other"), resume=True)


def test_a_study_is_gone_on_with_from_another_folder(
    job: JobSpec, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    play(job, ["finished"])
    monkeypatch.chdir(tmp_path / "a")
    moved = {"model__path": "../base", "data__train": "../train.jsonl"}
    check_study(changed(job, **moved, data__validation="../validation.jsonl"), resume=True)
    with pytest.raises(InputError, match=r"model.path is .*base', was '/"):
        check_study(changed(job, model__path="base"), resume=True)


def test_the_folder_of_another_stores_study_is_refused(
    job: JobSpec, play: Play, tmp_path: Path
) -> None:
    play(job, ["finished", "cut"])
    record = job.study_folder() / "job.json"
    before = record.read_text()
    other = changed(job, cluster__store=f"sqlite:///{tmp_path}/other.db", search__trials=7)
    why = "study home: its folder .* belongs to a study of this name in another store"
    for begins in (lambda: check_study(other, resume=False), lambda: play(other, ["finished"])):
        with pytest.raises(InputError, match=why) as told:
            begins()
        assert "\n" not in str(told.value)
        assert study_names(other.cluster) == []
    apart = changed(other, cluster__storage=str(tmp_path / "apart"))
    play(apart, ["cut"])
    for begins in (
        lambda: check_study(other, resume=True),
        lambda: play(other, ["finished"], resume=True),
    ):
        with pytest.raises(InputError, match=why):
            begins()
    assert record.read_text() == before
    check_study(apart, resume=True)


def test_folder_and_database_may_be_moved(job: JobSpec, play: Play, tmp_path: Path) -> None:
    play(job, ["finished", "cut"])
    Path(job.cluster.storage).rename(tmp_path / "moved")
    (tmp_path / "moved" / "moetune.db").rename(tmp_path / "moved.db")
    store = f"sqlite:///{tmp_path}/moved.db"
    moved = changed(job, cluster__storage=str(tmp_path / "moved"), cluster__store=store)
    check_study(moved, resume=True)
    play(moved, ["finished"], resume=True)


def test_a_study_from_before_folders_had_owners_is_gone_on_with(job: JobSpec, play: Play) -> None:
    play(job, ["finished", "cut"])
    note = job.study_folder() / "study.id"
    note.unlink()
    engine = sa.create_engine(job.cluster.shown_store())
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM study_user_attributes WHERE key = 'id'"))
    engine.dispose()
    check_study(job, resume=True)
    play(job, ["finished"], resume=True)
    assert note.exists()
    check_study(job, resume=True)


def test_two_processes_do_not_run_one_study(job: JobSpec) -> None:
    with locked(job), pytest.raises(InputError, match="another process"), locked(job):
        pass
    with locked(job):
        pass
