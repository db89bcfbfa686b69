"""ASHA's decisions, as Tune asks for them, in a study that is cut off and gone on with."""

from collections.abc import Sequence

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.config.job import JobSpec, override_job
from orchestrator.tuning.lifecycle import begin
from orchestrator.tuning.scheduler import StudyScheduler
from orchestrator.tuning.searcher import StudySearch
from orchestrator.tuning.storage import storage
from orchestrator.tuning.study import trial_name

EVERY = 10
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
Events = Sequence[tuple[int, int, float]]
"""Reports of trials in turn: number, step, loss."""


@pytest.fixture
def long(job: JobSpec) -> JobSpec:
    """Its rungs are at 10, 30 and 90 steps; every evaluation makes a checkpoint."""
    return override_job(job, {"optimizer.steps": 100, "search.repeat": True}, "test")


class Life:
    """A study's driver, from its begin or a resume until it is killed."""

    def __init__(self, job: JobSpec, store: object, *, resume: bool) -> None:
        study = begin(job, resume, store)  # type: ignore[arg-type]
        self._job, self._resume = job, resume
        self._search = StudySearch(job, study, store, str)  # type: ignore[arg-type]
        self._scheduler = StudyScheduler(job, self._search, study)
        self._trials: dict[int, Trial] = {}

    def report(self, number: int, step: int, loss: float) -> str:
        """What becomes of a trial that reports."""
        while number not in self._trials:
            self._next()
        trial, result = self._trials[number], {"step": step, self._search.metric: loss}
        self._search.on_trial_result(trial.trial_id, result)
        name = trial_name(number)
        folder = self._job.study_folder() / "trials" / name / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        return self._scheduler.on_trial_result(None, trial, result)

    def _next(self) -> None:
        trial = Trial("trial", stub=True)
        self._search.suggest(trial.trial_id)
        self._scheduler.on_trial_add(None, trial)
        self._trials[self._search.trial(trial.trial_id).number] = trial


def decisions(job: JobSpec, events: Events, killed_after: int | None = None) -> list[str]:
    """What becomes of each report."""
    found = []
    with storage(job.cluster, create=True) as store:
        life = Life(job, store, resume=False)
        for at, event in enumerate(events):
            if at == killed_after:
                life = Life(job, store, resume=True)
            found.append(life.report(*event))
    return found


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_trial_is_not_stopped_for_having_been_better_itself(
    long: JobSpec, killed_after: int
) -> None:
    """As in `moetune train --resume`: there is no other trial to fall behind."""
    events = [(0, 10, 1.0), (0, 20, 1.2), (0, 30, 1.1), (0, 40, 1.3), (0, 50, 1.4), (0, 90, 1.5)]
    assert decisions(long, events, killed_after) == [CONTINUE] * len(events)


SEVERAL: Events = [
    (0, 10, 1.0),
    (1, 10, 0.9),
    (0, 20, 1.2),
    (0, 30, 0.5),
    (1, 20, 0.8),
    (0, 40, 0.7),
    (2, 10, 0.95),
    (1, 30, 0.6),
    (3, 10, 0.7),
    (0, 90, 0.6),
    (3, 30, 0.4),
]


@pytest.mark.parametrize("killed_after", [2, 5, 8, 10])
def test_a_study_that_is_gone_on_with_decides_as_one_that_nothing_cut_off(
    long: JobSpec, killed_after: int
) -> None:
    name = {"name": "whole"}
    whole = decisions(override_job(long, name, "test"), SEVERAL)
    assert {CONTINUE, STOP} == {*whole}
    assert decisions(long, SEVERAL, killed_after) == whole
