"""Optuna's search as Ray Tune drives it.

Optuna's storage and the trials' folders are a study's only memory. Tune's own snapshot of an
experiment is not used to go on after the driver was killed: it is taken every ten seconds (a trial
that finished since would run again), leaves out ASHA's rungs, and is a pickle.
"""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.config.job import JobSpec
from orchestrator.store.errors import StoreError
from orchestrator.tuning.repeats import first_with, repeat, settle
from orchestrator.tuning.storage import stored_trial
from orchestrator.tuning.study import COMES_FROM, SAME_AS, trial_name
from search_spaces.samplers import sampler
from workers.config.base import InputError
from workers.run.early_stopping import early_end, final_value, has_ended
from workers.run.files import write_text

Register = Callable[[int], str]
"""Puts a finished trial's adapter into the registry, given its number; returns the version's id."""


@dataclass
class TrialNames:
    """Names of Tune's trials by their ids. Tune pickles it with each trial, so it holds no more."""

    by_id: dict[str, str] = field(default_factory=dict)

    def __call__(self, trial: Trial) -> str:
        return self.by_id[trial.trial_id]


class StudySearch(Searcher):  # type: ignore[misc]
    """Asks Optuna for each trial's values and tells it how the trial ended. Numbers, resumes,
    explains and registers trials."""

    def __init__(
        self,
        job: JobSpec,
        study: optuna.Study,
        store: optuna.storages.RDBStorage,
        register: Register,
    ) -> None:
        """`study` lies in `store`; its running trials were cut off and are gone on with first."""
        super().__init__(metric=job.search.metric, mode=job.search.mode)
        self._job, self._study, self._store = job, study, store
        self._register = register
        self._space = job.search_space()
        self._asked: dict[str, optuna.Trial] = {}
        """Optuna's trials by the ids of Tune's."""
        self._failures: dict[str, str] = {}
        self.refusal: InputError | None = None
        """Bad input that a trial met, or a store that failed: what ends the study."""
        self.names = TrialNames()
        study.sampler = sampler(job.search, 0)
        settle(study, store)
        self._cut_off = [
            trial.number
            for trial in self.trials()
            if not trial.state.is_finished() and SAME_AS not in trial.user_attrs
        ]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Values for a new trial, or again for one that was cut off; FINISHED after the last. A
        setting is not trained again (unless the job asks for it): that trial gets what the one
        before got, and the next one is suggested."""
        while self._cut_off or len(self.trials()) < self._job.search.trials:
            trial = self._ask()
            values = self._space.suggest(trial)
            trial.set_user_attr("values", values)
            trial.set_user_attr("tune_trial", trial_id)
            first = None if self._job.search.repeat else first_with(values, trial, self.trials())
            if first is None:
                self._take(trial_id, trial)
                return values
            repeat(trial, first)
            settle(self._study, self._store)
        finished: str = self.FINISHED
        return finished

    def _ask(self) -> optuna.Trial:
        number = self._cut_off.pop(0) if self._cut_off else None
        seed = self._seed(len(self.trials()) if number is None else number)
        self._study.sampler = sampler(self._job.search, seed)
        if number is None:
            return self._study.ask()
        return stored_trial(self._study, self._store, number)

    def _take(self, trial_id: str, trial: optuna.Trial) -> None:
        self._asked[trial_id] = trial
        self.names.by_id[trial_id] = trial_name(trial.number)

    def _seed(self, number: int) -> int:
        """What a trial of this number is seeded by, so that a study gone on with suggests what it
        would have: also for one that was cut off before it had all its values, and on other rows,
        where those that were moved had other numbers before."""
        moved = [
            one.user_attrs[COMES_FROM] for one in self.trials() if COMES_FROM in one.user_attrs
        ]
        return number + (max(moved) + 1 - len(moved) if moved else 0)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an intermediate value, at the trial's own step."""
        record, step = self.trial(trial_id), result["step"]
        if not record.state.is_finished() and step not in record.intermediate_values:
            self._asked[trial_id].report(result[self.metric], step)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end: COMPLETE with a version, PRUNED where ASHA stopped it, or FAIL.

        Without an error and a result the study was interrupted: the trial will be gone on with.
        """
        if self.trial(trial_id).state.is_finished():
            return
        if error:
            self._fail(trial_id)
        elif result:
            self.on_trial_result(trial_id, result)
            self._end(trial_id, result)
        settle(self._study, self._store)

    def _end(self, trial_id: str, result: dict[str, Any]) -> None:
        trial, value = self._asked[trial_id], final_value(result, self.metric)
        for name, said in early_end(result).items():
            trial.set_user_attr(name, said)
        if not has_ended(result):
            self._study.tell(trial, state=TrialState.PRUNED)
        elif math.isnan(value):  # which Optuna compares with nothing
            self._failures[trial_id] = f"its {self.metric} is not a number"
            self._fail(trial_id)
        elif self._put_into_registry(trial_id):
            self._study.tell(trial, value)
        else:
            self._fail(trial_id)

    def note_failure(self, trial_id: str, why: str) -> None:
        """Remember why a trial failed: Tune tells a searcher only that it did."""
        self._failures[trial_id] = why
        failures = self.trial(trial_id).user_attrs.get("failures", [])
        self._asked[trial_id].set_user_attr("failures", [*failures, why])

    def trial(self, trial_id: str) -> FrozenTrial:
        """Optuna's record of a Tune trial, as it is stored."""
        return self.trials()[self._asked[trial_id].number]

    def trials(self) -> list[FrozenTrial]:
        """All trials of the study by number, of earlier sessions too."""
        found: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return found

    def folder(self, trial_id: str) -> Path:
        """The trial's own folder."""
        return self._job.study_folder() / "trials" / self.names.by_id[trial_id]

    def _fail(self, trial_id: str) -> None:
        why = self._failures.get(trial_id, "ended without a result")
        self._asked[trial_id].set_user_attr("reason", why)
        with suppress(OSError):  # a full disk, perhaps why it failed: the store has the reason
            self.folder(trial_id).mkdir(parents=True, exist_ok=True)
            write_text(self.folder(trial_id) / "error.txt", why + "\n")
        self._study.tell(self._asked[trial_id], state=TrialState.FAIL)

    def _put_into_registry(self, trial_id: str) -> bool:
        number = self._asked[trial_id].number
        try:
            version = self._register(number)
        except StoreError as error:  # the trial is as good as before: it is gone on with
            self.refusal = error
            raise
        except (InputError, OSError) as error:
            self._failures[trial_id] = f"its adapter cannot be registered: {error}"
            return False
        self._asked[trial_id].set_user_attr("version", version)
        return True

    def save(self, checkpoint_path: str) -> None:
        """Part of Tune's snapshot: which trial of Tune's is which of Optuna's."""
        numbers = {trial_id: trial.number for trial_id, trial in self._asked.items()}
        write_text(Path(checkpoint_path), json.dumps(numbers))

    def restore(self, checkpoint_path: str) -> None:
        """Know these trials again: Tune goes on with them by itself."""
        for trial_id, number in json.loads(Path(checkpoint_path).read_text()).items():
            self._take(trial_id, stored_trial(self._study, self._store, number))
            if number in self._cut_off:
                self._cut_off.remove(number)
