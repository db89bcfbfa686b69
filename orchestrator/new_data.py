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
from workers.spec import InputError, override
from workers.train.used import note_used, read_used, used_file

_KEPT = ("values", "checkpoint")
"""What a trial has noted that holds on other rows, too."""
_SUCCESSOR = "goes_on_in"
"""Note of a study, and of each trial that was moved: the new study's name."""


def on_new_data(job: JobSpec) -> JobSpec:
    """The job of the study that goes on with this one on the rows of today, made if need be; the
    job itself where its rows are the same. Raises InputError if there is nothing left to do."""
    from workers.data.source import data_digest

    before = read_used(used_file(job.study_folder(), job.train))
    now = data_digest(job.train.data)
    if before is None or before.data == now:
        return job
    with storage(job.cluster) as store:
        former = optuna.load_study(study_name=job.name, storage=store)
        known = optuna.get_all_study_names(store)
        renamed = _renamed(job, former, known)
        changes = {"data": now, "earlier_data": (*before.earlier_data, before.data)}
        used = used_file(renamed.study_folder(), renamed.train)
        note_used(used, before.model_copy(update=changes))
        new = begin(renamed, renamed.name in known, store)
        former.set_user_attr(_SUCCESSOR, renamed.name)
        for trial in former.get_trials(deepcopy=False):
            if not trial.state.is_finished():
                _move(trial, former, new, job, renamed)
    return on_new_data(renamed)  # whose rows may have changed again


def _renamed(job: JobSpec, former: optuna.Study, known: Collection[str]) -> JobSpec:
    """The job of the new study, or of the one that went on before: the first free name, and the
    trials that are left."""
    ended = [trial for trial in former.trials if trial.state.is_finished()]
    left = job.search.trials - sum(_SUCCESSOR not in trial.user_attrs for trial in ended)
    if left < 1:
        raise InputError(
            f"study {job.name}: all of its {job.search.trials} trials have ended on the rows that "
            "it began with; tune the new ones under another name (--set name=NAME)"
        )
    free = (name for number in count(2) if (name := f"{job.name}-{number}") not in known)
    name = former.user_attrs.get(_SUCCESSOR) or next(free)
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
        steps = override(job.train, kept["values"], f"trial {trial.number}").optimizer.steps
        # From its very end there is no going on: it has learned nothing of the new rows then.
        ended = shutil.ignore_patterns(f"step-{steps:08d}")
        if (job.study_folder() / own).is_dir():
            shutil.copytree(job.study_folder() / own, renamed.study_folder() / there, ignore=ended)
    record = optuna.trial.Trial(former, trial._trial_id)
    record.set_user_attr(_SUCCESSOR, renamed.name)
    record.set_user_attr("reason", f"its rows have changed: it goes on in study {renamed.name}")
    former.tell(trial.number, state=optuna.trial.TrialState.FAIL)
