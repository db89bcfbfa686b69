"""Settings that the search suggests again, as Optuna's storage keeps them, without training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.config.job import JobSpec, override_job
from orchestrator.monitoring.status import study_status
from orchestrator.tuning.lifecycle import begin
from orchestrator.tuning.searcher import StudySearch
from orchestrator.tuning.storage import storage
from orchestrator.tuning.study import COMES_FROM, Study

SMALL = {
    "search.space": {"adapter.num_experts": {"choice": [2, 4]}, "optimizer.lr": 1e-3},
    "search.trials": 6,
}
Play = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def small(job: JobSpec) -> JobSpec:
    """Two settings, six trials."""
    return override_job(job, SMALL, "test")


@pytest.fixture
def one(small: JobSpec) -> JobSpec:
    """One setting, three trials."""
    job = override_job(small, {"search.space": {"adapter.rank": 8}, "search.trials": 3}, "test")
    job.study_folder().mkdir(parents=True)
    return job


def searching(job: JobSpec, store: Any, resume: bool = False) -> StudySearch:
    return StudySearch(job, begin(job, resume, store), store, lambda number: f"{number:012x}")


def end(search: StudySearch, trial_id: str, how: str, loss: float = 1.0) -> None:
    if how == "failed":
        return search.on_trial_complete(trial_id, error=True)
    steps = {"finished": 40, "stopped": 20}[how]
    result = {"step": steps, "steps": 40, "validation/loss": loss}
    return search.on_trial_complete(trial_id, result)


def test_a_setting_is_trained_once_and_the_leaderboard_says_so(small: JobSpec, play: Play) -> None:
    suggested = play(small, ["finished", "finished"])
    assert suggested[0] != suggested[1]
    with storage(small.cluster) as store:
        search = searching(small, store, resume=True)
        assert search.suggest("more") == search.FINISHED
    rows = sorted(Study.open(small.cluster, "home").leaderboard(), key=lambda row: row.number)
    assert [row.state for row in rows] == ["finished"] * 6
    for row in rows[2:]:
        first = rows[suggested.index(values_of(small, row.number))]
        assert row.reason == f"same setting as trial {first.number}: not trained again"
        assert (row.value, row.version, row.steps) == (first.value, first.version, first.steps)
        assert row.params == first.params
        assert not (small.study_folder() / "trials" / f"T00{row.number}").exists()
    best = Study.open(small.cluster, "home").best()
    assert best
    assert best.reason is None, "the one that was trained"


def values_of(job: JobSpec, number: int) -> Any:
    return Study.open(job.cluster, "home").optuna.trials[number].user_attrs["values"]


@pytest.mark.parametrize("how", ["finished", "stopped", "failed"])
def test_one_that_repeats_a_running_trial_ends_with_it(one: JobSpec, how: str) -> None:
    with storage(one.cluster, create=True) as store:
        search = searching(one, store)
        assert search.suggest("first") == {"adapter.rank": 8}
        assert search.suggest("second") == search.FINISHED
        states = [trial.state.name for trial in search.trials()]
        assert states == ["RUNNING"] * 3
        status = study_status(Study.open(one.cluster, "home"))
        assert [run.trial for run in status.running] == [0]
        end(search, "first", how)
        assert len({trial.state for trial in search.trials()}) == 1
        assert all(trial.state.is_finished() for trial in search.trials())
        assert len({trial.value for trial in search.trials()}) == 1


def test_what_was_cut_off_is_settled_when_it_has_ended(one: JobSpec) -> None:
    with storage(one.cluster, create=True) as store:
        search = searching(one, store)
        search.suggest("first")
        search.suggest("second")
    with storage(one.cluster) as store:
        again = searching(one, store, resume=True)
        assert again.suggest("resumed") == {"adapter.rank": 8}
        assert again.trial("resumed").number == 0
        assert again.suggest("more") == again.FINISHED
        end(again, "resumed", "finished")
        assert [trial.state.name for trial in again.trials()] == ["COMPLETE"] * 3


def test_a_failed_setting_is_tried_again_and_any_if_asked_for(one: JobSpec) -> None:
    with storage(one.cluster, create=True) as store:
        search = searching(one, store)
        search.suggest("first")
        end(search, "first", "failed")
        assert search.suggest("second") == {"adapter.rank": 8}
        end(search, "second", "finished")
    asked = override_job(one, {"search.repeat": True}, "test")
    with storage(one.cluster) as store:
        again = searching(asked, store, resume=True)
        assert again.suggest("third") == {"adapter.rank": 8}


@pytest.mark.parametrize("moved", [[1], [1, 3]])
def test_a_study_on_other_rows_suggests_what_the_former_would_have(
    job: JobSpec, tmp_path: Path, moved: list[int]
) -> None:
    """And not again what was moved to it, which has other numbers there."""

    def suggested(folder: str, before: Sequence[int], count: int) -> list[Any]:
        changes = {"search.startup_trials": 9, "cluster.storage": str(tmp_path / folder)}
        one = override_job(job, changes, "test")
        one.study_folder().mkdir(parents=True)
        with storage(one.cluster, create=True) as store:
            study = begin(one, False, store)
            search = StudySearch(one, study, store, str)
            for number in before:
                attributes = {COMES_FROM: number, "values": {}}
                trial = optuna.create_trial(state=TrialState.FAIL, user_attrs=attributes)
                study.add_trial(trial)
            return [search.suggest(str(index)) for index in range(count)]

    former = suggested("former", (), 6)
    following = former[max(moved) + 1 :]
    assert suggested("new", moved, len(following)) == following
