"""Optuna's search as Ray Tune drives it.

Optuna's storage and the trials' folders are a study's only memory. Tune's own snapshot of an
experiment is not used to go on after the driver was killed: it is taken every ten seconds (a trial
that finished since would run again), leaves out ASHA's rungs, and is a pickle.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
from ray.tune.experiment import Trial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import IntegrityError

from orchestrator.config.job import JobSpec
from orchestrator.store.connections import store_fault
from orchestrator.store.errors import StoreError
from orchestrator.tuning.repeats import first_with, repeat, settle
from orchestrator.tuning.study import COMES_FROM, SAME_AS, trial_name
from workers.config.base import InputError, override
from workers.run.files import write_text

Register = Callable[[int], str]
"""Puts a finished trial's adapter into the registry, given its number; returns the version's id."""


@dataclass
class TrialNames:
    """Names of Tune's trials by their ids. Tune pickles it with each trial, so it holds no more."""

    by_id: dict[str, str] = field(default_factory=dict)

    def __call__(self, trial: Trial) -> str:
        return self.by_id[trial.trial_id]


class StudySearch(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch that numbers, resumes, explains and registers trials."""

    def __init__(self, job: JobSpec, study: optuna.Study, register: Register) -> None:
        """`study` exists already; its running trials were cut off and are gone on with first."""
        self._job = job
        self._register = register
        self._failures: dict[str, str] = {}
        self.refusal: InputError | None = None
        """Bad input that a trial met, or a store that failed: what ends the study."""
        self.names = TrialNames()
        super().__init__(
            space=job.search_space(),
            metric=job.search.metric,
            mode=job.search.mode,
            sampler=_sampler(job, 0),
            study_name=study.study_name,
            storage=study._storage,
        )
        settle(self._ot_study)
        unfinished = (trial for trial in self.trials() if not trial.state.is_finished())
        self._cut_off = [trial for trial in unfinished if SAME_AS not in trial.user_attrs]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Values for a new trial, or again for one that was cut off; FINISHED after the last. A
        setting is not trained again (unless the job asks for it): that trial gets what the one
        before got, and the next one is suggested."""
        while self._cut_off or len(self.trials()) < self._job.search.trials:
            values = self._values(trial_id)
            trial = self._ot_trials[trial_id]
            first = None if self._job.search.repeat else first_with(values, trial, self.trials())
            if first is None:
                self.names.by_id[trial_id] = trial_name(trial.number)
                return values
            repeat(trial, first)
            settle(self._ot_study)
            del self._ot_trials[trial_id]
        finished: str = self.FINISHED
        return finished

    def _values(self, trial_id: str) -> dict[str, Any]:
        if self._cut_off:
            known = optuna.trial.Trial(self._ot_study, self._cut_off.pop(0)._trial_id)
            self._ot_trials[trial_id] = known
        else:
            self._ot_study.sampler = _sampler(self._job, self._next_number())
        values: dict[str, Any] = super().suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr("values", values)
        self._ot_trials[trial_id].set_user_attr("tune_trial", trial_id)
        return values

    def _next_number(self) -> int:
        """What the next trial is seeded by, so that a study gone on with suggests what it would
        have; also on other rows, where those that were moved had other numbers before."""
        trials = self.trials()
        before = [one.user_attrs[COMES_FROM] for one in trials if COMES_FROM in one.user_attrs]
        return len(trials) + (max(before) + 1 - len(before) if before else 0)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an intermediate value, at the trial's own step."""
        reported = self.trial(trial_id).intermediate_values
        if result["step"] not in reported:
            super().on_trial_result(trial_id, {**result, TRAINING_ITERATION: result["step"]})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end: COMPLETE with a version, PRUNED where ASHA stopped it, or FAIL.

        Without an error and a result the study was interrupted: the trial will be gone on with.
        """
        if error:
            self._fail(trial_id)
        elif result:
            self.on_trial_result(trial_id, result)
            if result["step"] < self.steps(trial_id):
                super().on_trial_complete(trial_id)
            elif self._put_into_registry(trial_id):
                super().on_trial_complete(trial_id, result)
            else:
                self._fail(trial_id)
        settle(self._ot_study)

    def note_failure(self, trial_id: str, why: str) -> None:
        """Remember why a trial failed: Tune tells a searcher only that it did."""
        self._failures[trial_id] = why
        failures = self.trial(trial_id).user_attrs.get("failures", [])
        self._ot_trials[trial_id].set_user_attr("failures", [*failures, why])

    def trial(self, trial_id: str) -> optuna.trial.FrozenTrial:
        """Optuna's record of a Tune trial, as it is stored."""
        known = self._ot_trials[trial_id]
        return self._ot_study._storage.get_trial(known._trial_id)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials of the study, of earlier sessions too."""
        found: list[optuna.trial.FrozenTrial] = self._ot_study.get_trials(deepcopy=False)
        return found

    def steps(self, trial_id: str) -> int:
        """Optimizer steps that a trial makes if nothing stops it."""
        values = self.trial(trial_id).user_attrs["values"]
        return override(self._job.train, values, "trial").optimizer.steps

    def folder(self, trial_id: str) -> Path:
        """The trial's own folder."""
        return self._job.study_folder() / "trials" / self.names.by_id[trial_id]

    def _fail(self, trial_id: str) -> None:
        why = self._failures.get(trial_id, "ended without a result")
        self._ot_trials[trial_id].set_user_attr("reason", why)
        self.folder(trial_id).mkdir(parents=True, exist_ok=True)
        write_text(self.folder(trial_id) / "error.txt", why + "\n")
        super().on_trial_complete(trial_id, error=True)

    def _put_into_registry(self, trial_id: str) -> bool:
        number = self._ot_trials[trial_id].number
        try:
            version = self._register(number)
        except StoreError as error:  # the trial is as good as before: it is gone on with
            self.refusal = error
            raise
        except (InputError, OSError) as error:
            self._failures[trial_id] = f"its adapter cannot be registered: {error}"
            return False
        self._ot_trials[trial_id].set_user_attr("version", version)
        return True


@contextmanager
def refusing(search: StudySearch, store: sa.Engine, ours: Callable[[], bool]) -> Iterator[None]:
    """Raises `search.refusal` in place of what Tune has made of it. A fault of the store becomes
    one, whichever part of Tune has asked; so does a study that is no longer `ours` when the store
    is connected to anew."""

    def note(context: sa.ExceptionContext) -> None:
        fault = context.sqlalchemy_exception
        if fault is None or isinstance(fault, IntegrityError) or context.is_pre_ping:
            return  # who asked looks after it
        search.refusal = search.refusal or StoreError(f"the store failed: {store_fault(fault)}")

    def connected(*_: object) -> None:
        if not ours():
            search.refusal = StoreError("another process has gone on with the study meanwhile")
            raise search.refusal

    def quiet(_: logging.LogRecord) -> bool:
        return search.refusal is None  # Tune logs the traceback of what it meets then

    tunes = logging.getLogger("ray.tune.execution.tune_controller")
    sa.event.listen(store, "handle_error", note)
    sa.event.listen(store, "connect", connected)
    tunes.addFilter(quiet)
    try:
        yield
    except Exception:
        if search.refusal:
            raise search.refusal from None
        raise
    finally:
        tunes.removeFilter(quiet)
        sa.event.remove(store, "handle_error", note)
        sa.event.remove(store, "connect", connected)


def _sampler(job: JobSpec, number: int) -> optuna.samplers.TPESampler:
    """TPE for the trial of this number. Running trials count as bad, to keep others away."""
    seeds = np.random.SeedSequence([job.search.seed, number]).generate_state(1)
    return optuna.samplers.TPESampler(
        seed=int(seeds[0]),
        n_startup_trials=job.search.startup_trials,
        constant_liar=job.search.max_concurrent > 1,
    )
