"""ASHA for a study: it stops trials that fall behind at a rung of optimizer steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from orchestrator.config.job import JobSpec
from orchestrator.tuning.failures import bad_input, cause
from orchestrator.tuning.run_length import most_steps
from orchestrator.tuning.searcher import StudySearch
from orchestrator.tuning.study import SAME_AS, trial_name
from search_spaces.samplers import pruner
from workers.config.base import InputError
from workers.run.record import reason

_LONGEST_REASON = 500


class StudyScheduler(ASHAScheduler):  # type: ignore[misc]
    """ASHA that knows a resumed study's past, and tells the searcher why a trial failed.

    A trial that is gone on with gets another id from Tune. ASHA sees it under its own name, or it
    would compare it with its own past, at rungs that it has passed.
    """

    def __init__(self, job: JobSpec, search: StudySearch, study: optuna.Study) -> None:
        super().__init__(**pruner(job.search, job.search_space(), most_steps(job)))
        self._search, self._job = search, job
        for trial in study.get_trials(deepcopy=False):
            if SAME_AS not in trial.user_attrs:  # others were trained once for all of them
                self._replay(trial)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial begins or goes on."""
        super().on_trial_add(tune_controller, self._named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an evaluation."""
        decision: str = super().on_trial_result(tune_controller, self._named(trial), result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial ended."""
        super().on_trial_complete(tune_controller, self._named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A trial ended before it ran."""
        super().on_trial_remove(tune_controller, self._named(trial))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A trial failed, or is about to be tried again. Bad input would fail again, and every
        trial after it: an error that is raised here ends the study, as if it was interrupted."""
        if self._search.refusal:
            raise self._search.refusal
        super().on_trial_error(tune_controller, trial)
        written = self._search.folder(trial.trial_id) / "error.txt"
        error = _last_error(trial)
        why = written.read_text() if written.exists() else reason(cause(error))
        self._search.note_failure(trial.trial_id, why.strip()[:_LONGEST_REASON])
        if found := bad_input(error):
            name = self._search.names.by_id[trial.trial_id]
            self._search.refusal = InputError(
                f"study {self._job.name}: trial {name}: {found} (once that is mended, the study "
                "goes on with --resume)"
            )
            raise self._search.refusal

    def _replay(self, past: optuna.trial.FrozenTrial) -> None:
        """Fill the rungs with what a trial reported in an earlier life of the study."""
        from workers.train.checkpoint.state import CheckpointStore

        named = _Named(trial_name(past.number))
        super().on_trial_add(None, named)
        own = self._job.study_folder() / "trials" / named.trial_id
        last = CheckpointStore(own / "checkpoints").last_step()
        for step, value in sorted(past.intermediate_values.items()):
            if past.state.is_finished() or step <= last:  # later ones will be reported again
                report = {"step": step, self._search.metric: value}
                super().on_trial_result(None, named, report)

    def _named(self, trial: Trial) -> "_Named":
        return _Named(self._search.names.by_id[trial.trial_id])


def _last_error(trial: Trial) -> BaseException:
    """Tune's own `get_pickled_error` looks where a file is copied to some seconds later."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return RuntimeError("no reason is known")
    error: BaseException = cloudpickle.loads(Path(path).read_bytes())
    return error


@dataclass(frozen=True)
class _Named:
    """Stands for a trial in every life of the study: ASHA looks at a trial's id only."""

    trial_id: str
