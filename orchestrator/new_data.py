"""Going on with a study whose rows have changed: as a new one.

Values of trials over other rows do not compare, so what has ended stays with the former study, and
what was cut off goes on in a new one, from its last checkpoint. The manifests name all rows used.
"""

import shutil
from collections.abc import Collection
from itertools import count
from pathlib import Path

import optuna

from orchestrator.begin import begin
from orchestrator.spec import JobSpec, override_job
from orchestrator.storage import storage
from orchestrator.study import trial_name
from workers.spec import InputError
from workers.train.used import note_used, read_used

_KEPT = ("values", "checkpoint")
"""What a trial has noted that holds on other rows, too."""


def on_new_data(job: JobSpec) -> JobSpec:
    """The job under a new name, with what was cut off of the former study moved into its own;
    the job itself where its rows are the same. Raises InputError if there is nothing left to do."""
    from workers.data.source import data_digest

    before, now = read_used(job.study_folder()), data_digest(job.train.data)
    if before is None or before.data == now:
        return job
    with storage(job.cluster) as store:
        former = optuna.load_study(study_name=job.name, storage=store)
        renamed = _renamed(job, former, optuna.get_all_study_names(store))
        renamed.study_folder().mkdir(parents=True, exist_ok=True)
        changes = {"data": now, "earlier_data": (*before.earlier_data, before.data)}
        note_used(renamed.study_folder(), before.model_copy(update=changes))
        new = begin(renamed, resume=False, store=store)
        for trial in former.get_trials(deepcopy=False):
            if not trial.state.is_finished():
                _move(trial, former, new, job, renamed)
    return renamed


def _renamed(job: JobSpec, former: optuna.Study, known: Collection[str]) -> JobSpec:
    """The job of the new study: the first free name, and the trials that are left."""
    left = job.search.trials - sum(trial.state.is_finished() for trial in former.trials)
    if left < 1:
        raise InputError(
            f"study {job.name}: all of its {job.search.trials} trials have ended on the rows that "
            "it began with; tune the new ones under another name (--set name=NAME)"
        )
    names = (f"{job.name}-{number}" for number in count(2))
    name = next(name for name in names if name not in known)
    return override_job(job, {"name": name, "search.trials": left}, f"job {job.name}")


def _move(
    trial: optuna.trial.FrozenTrial,
    former: optuna.Study,
    new: optuna.Study,
    job: JobSpec,
    renamed: JobSpec,
) -> None:
    """Let a trial go on in the new study. Its values so far are of other rows and stay behind."""
    kept = {key: trial.user_attrs[key] for key in _KEPT if key in trial.user_attrs}
    if "values" in kept:
        new.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=kept,
            )
        )
        own = Path("trials", trial_name(trial.number), "checkpoints")
        there = Path("trials", trial_name(new.trials[-1].number), "checkpoints")
        if (job.study_folder() / own).is_dir():
            shutil.copytree(job.study_folder() / own, renamed.study_folder() / there)
    record = optuna.trial.Trial(former, trial._trial_id)
    record.set_user_attr("reason", f"its rows have changed: it goes on in study {renamed.name}")
    former.tell(trial.number, state=optuna.trial.TrialState.FAIL)
