"""The search as Tune calls it, with Optuna's storage and without training."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import ConcurrencyLimiter

from orchestrator.config.job import JobSpec, override_job
from orchestrator.tuning.lifecycle import begin
from orchestrator.tuning.searcher import StudySearch
from orchestrator.tuning.storage import storage

LAST = 40
Store = optuna.storages.RDBStorage


@pytest.fixture
def job_there(job: JobSpec, store: str) -> JobSpec:
    """The job in a store of each kind."""
    return override_job(job, {"cluster.store": store}, "test")


@pytest.fixture
def opened(job_there: JobSpec) -> Iterator[Store]:
    with storage(job_there.cluster, create=True) as opened:
        yield opened


def searching(job: JobSpec, opened: Store, resume: bool = False) -> StudySearch:
    study = begin(job, resume, opened)
    return StudySearch(job, study, opened, lambda number: f"{number:012x}")


def result(job: JobSpec, loss: float, step: int = LAST) -> dict[str, Any]:
    return {"step": step, "steps": LAST, job.search.metric: loss}


def states(search: StudySearch) -> list[str]:
    return [trial.state.name for trial in search.trials()]


def test_values_are_noted_with_the_trial_that_optuna_numbers(
    job_there: JobSpec, opened: Store
) -> None:
    search = searching(job_there, opened)
    for number, trial_id in enumerate("ab"):
        values = search.suggest(trial_id)
        record = search.trial(trial_id)
        assert (record.number, search.names.by_id[trial_id]) == (number, f"T00{number}")
        assert record.user_attrs == {"values": values, "tune_trial": trial_id}
        assert isinstance(values, dict)
        assert record.params.items() <= values.items()


def test_an_end_is_told_once(job_there: JobSpec, opened: Store) -> None:
    """Tune tells a trial's end again where it stops one that has just ended."""
    registered: list[int] = []

    def register(number: int) -> str:
        registered.append(number)
        return "v"

    search = StudySearch(job_there, begin(job_there, False, opened), opened, register)
    search.suggest("a")
    search.on_trial_complete("a", result(job_there, 1.0))
    search.on_trial_result("a", result(job_there, 2.0, step=LAST + 10))
    search.on_trial_complete("a", result(job_there, 2.0))
    search.on_trial_complete("a", error=True)
    (trial,) = search.trials()
    assert (trial.state.name, trial.value, trial.intermediate_values) == (
        "COMPLETE",
        1.0,
        {LAST: 1.0},
    )
    assert registered == [0]


def test_a_metric_that_is_no_number_fails_the_trial(job_there: JobSpec, opened: Store) -> None:
    search = searching(job_there, opened)
    search.suggest("a")
    search.on_trial_complete("a", result(job_there, math.nan))
    (trial,) = search.trials()
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["reason"] == "its validation/loss is not a number"
    assert "version" not in trial.user_attrs
    assert search.folder("a").joinpath("error.txt").read_text().strip().endswith("not a number")


def test_one_that_was_cut_off_before_it_had_all_values_gets_the_rest(
    job_there: JobSpec, opened: Store
) -> None:
    before = begin(job_there, False, opened).ask()
    first = job_there.search_space().parameters[0]
    value = first.range.suggest(before, first.path)
    search = searching(job_there, opened, resume=True)
    values = search.suggest("again")
    assert isinstance(values, dict)
    assert values[first.path] == value
    assert "optimizer.lr" in values
    assert search.trial("again").number == 0
    assert len(search.trials()) == 1
    search.on_trial_complete("again", result(job_there, 1.0))
    assert states(search) == ["COMPLETE"]


def test_one_that_was_cut_off_before_any_value_gets_what_it_would_have_got(
    job_there: JobSpec, opened: Store
) -> None:
    """Not the values that trial 0 got: then it would not be trained at all."""
    whole = searching(override_job(job_there, {"name": "whole"}, "test"), opened)
    wanted = [whole.suggest("a"), whole.suggest("b")]
    former = searching(job_there, opened)
    assert former.suggest("a") == wanted[0]
    former.on_trial_complete("a", result(job_there, 1.0))
    begin(job_there, True, opened).ask()  # and killed
    search = searching(job_there, opened, resume=True)
    assert search.suggest("b") == wanted[1] != wanted[0]
    assert search.trial("b").number == 1


def test_a_trial_fails_on_a_disk_that_takes_no_reason(job_there: JobSpec, opened: Store) -> None:
    search = searching(job_there, opened)
    search.suggest("a")
    search.folder("a").parent.mkdir(parents=True, exist_ok=True)
    search.folder("a").write_text("no folder can be made here")
    search.note_failure("a", "No space left on device")
    search.on_trial_complete("a", error=True)
    (trial,) = search.trials()
    assert (trial.state.name, trial.user_attrs["reason"]) == ("FAIL", "No space left on device")


def test_what_was_cut_off_goes_on_with_what_it_has_told(job_there: JobSpec, opened: Store) -> None:
    former = searching(job_there, opened)
    values = former.suggest("a")
    former.on_trial_result("a", result(job_there, 2.0, step=10))
    search = searching(job_there, opened, resume=True)
    assert search.suggest("b") == values
    for step in (10, 20):  # from its last checkpoint: one is told again
        search.on_trial_result("b", result(job_there, 30.0 / step, step))
    search.on_trial_complete("b", result(job_there, 1.5, step=20))
    (trial,) = search.trials()
    assert trial.intermediate_values == {10: 2.0, 20: 1.5}
    assert (trial.state.name, trial.value) == ("PRUNED", 1.5)


def test_tunes_snapshot_tells_which_trial_is_which(
    job_there: JobSpec, opened: Store, tmp_path: Path
) -> None:
    former = searching(job_there, opened)
    former.suggest("ended")
    former.on_trial_complete("ended", result(job_there, 1.0))
    former.suggest("running")
    former.save_to_dir(str(tmp_path), "now")
    search = searching(job_there, opened, resume=True)
    search.restore_from_dir(str(tmp_path))
    search.suggest("new")
    numbers = [search.trial(trial_id).number for trial_id in ("ended", "running", "new")]
    assert numbers == [0, 1, 2], "Tune goes on with the second by itself"
    search.on_trial_complete("running", result(job_there, 2.0))
    assert states(search) == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert search.folder("running").name == "T001"


def test_no_more_trials_run_than_may(job_there: JobSpec, opened: Store) -> None:
    search = searching(job_there, opened)
    limited = ConcurrencyLimiter(search, 2)
    assert limited.suggest("a")
    assert limited.suggest("b")
    assert limited.suggest("c") is None
    assert len(search.trials()) == 2, "nothing is asked for in vain"
    limited.on_trial_complete("a", result(job_there, 1.0))
    assert limited.suggest("c")
    assert states(search) == ["COMPLETE", "RUNNING", "RUNNING"]


def test_the_last_suggestion_is_followed_by_the_end(job_there: JobSpec, opened: Store) -> None:
    job = override_job(job_there, {"search.trials": 1}, "test")
    search = searching(job, opened)
    assert search.suggest("a") != search.FINISHED
    assert search.suggest("b") == search.FINISHED
