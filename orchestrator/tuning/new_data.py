"""Going on with a study whose rows have changed: as a new one.

Values of trials over other rows do not compare, so what has ended stays with the former study, and
what was cut off goes on in a new one, from its last checkpoint. The manifests name all rows used.
"""

import shutil
from collections.abc import Collection
from itertools import count

import optuna
from optuna.trial import FrozenTrial, TrialState

from orchestrator.config.job import JobSpec, override_job
from orchestrator.tuning.lifecycle import SUCCESSOR, begin
from orchestrator.tuning.run_length import steps_of_trial
from orchestrator.tuning.storage import storage, stored_trial
from orchestrator.tuning.study import COMES_FROM, trial_name
from orchestrator.tuning.study_folder import is_anothers
from workers.config.base import InputError, override
from workers.run.folders import new_folder
from workers.train.used import keep_dtype, note_used, read_used, used_file

_UNFINISHED = tuple(state for state in TrialState if not state.is_finished())


def on_new_data(job: JobSpec) -> JobSpec:
    """The job of the study that goes on with this one on the rows of today, made if need be; the
    job itself where its rows are the same. Raises InputError if there is nothing left to do."""
    from workers.data.sources.records import data_digest

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
        keep_dtype(job.study_folder(), renamed.study_folder())
        former.set_user_attr(SUCCESSOR, renamed.name)
        new = begin(renamed, renamed.name in known, store)
        for trial in former.get_trials(deepcopy=False, states=_UNFINISHED):
            if "values" in trial.user_attrs:  # it has got its parameters
                _copy_checkpoints(trial, job, renamed, _moved(trial, new))
            _end(stored_trial(former, store, trial.number), renamed.name)
    return on_new_data(renamed)  # whose rows may have changed again


def _renamed(job: JobSpec, former: optuna.Study, known: Collection[str]) -> JobSpec:
    """The job of the new study, or of the one that went on before: the first free name, and the
    trials that are left."""
    ended = [trial for trial in former.trials if trial.state.is_finished()]
    left = job.search.trials - sum(SUCCESSOR not in trial.user_attrs for trial in ended)
    if left < 1:
        raise InputError(
            f"study {job.name}: all of its {job.search.trials} trials have ended on the rows that "
            "it began with; tune the new ones under another name (--set name=NAME)"
        )
    names = (f"{job.name}-{number}" for number in count(2))
    free = (name for name in names if name not in known and not _is_anothers(job, name))
    name = former.user_attrs.get(SUCCESSOR) or next(free)
    return override_job(job, {"name": name, "search.trials": left}, f"job {job.name}")


def _is_anothers(job: JobSpec, name: str) -> bool:
    return is_anothers(job.cluster.study_folder(name), None)


def _moved(trial: FrozenTrial, new: optuna.Study) -> int:
    """Let a trial go on in the new study; its number there. Its values so far are of other rows
    and stay behind. Who was killed in the middle of this finds the trial that it has made."""
    number: int
    for number, one in enumerate(new.get_trials(deepcopy=False)):
        if one.user_attrs.get(COMES_FROM) == trial.number:
            return number
    new.add_trial(
        optuna.create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"values": trial.user_attrs["values"], COMES_FROM: trial.number},
        )
    )
    number = new.trials[-1].number
    return number


def _copy_checkpoints(trial: FrozenTrial, job: JobSpec, renamed: JobSpec, number: int) -> None:
    """The trial's checkpoints, for the trial `number` of the new study; all of them or none."""
    from workers.train.checkpoint.state import CheckpointStore

    own = job.study_folder() / "trials" / trial_name(trial.number) / "checkpoints"
    there = renamed.study_folder() / "trials" / trial_name(number) / "checkpoints"
    if there.exists() or not own.is_dir():
        return
    values = trial.user_attrs["values"]
    steps = steps_of_trial(override(renamed.train, values, f"trial {trial.number}"))
    # From its very end there is no going on: it has learned nothing of the new rows then.
    ended = shutil.ignore_patterns(*(one.name for one in CheckpointStore(own).from_step(steps)))
    with new_folder(there) as new:
        shutil.copytree(own, new, ignore=ended, dirs_exist_ok=True)


def _end(trial: optuna.Trial, successor: str) -> None:
    """End a trial here, with the word where it goes on."""
    trial.set_user_attr(SUCCESSOR, successor)
    trial.set_user_attr("reason", f"its rows have changed: it goes on in study {successor}")
    trial.study.tell(trial, state=TrialState.FAIL)
