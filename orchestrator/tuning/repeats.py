"""Trials that are suggested the setting of one before, which says all that training would.

Such a trial is a record in Optuna's storage alone: it ends as the one before does, as soon as that
has ended, with the same values and the same version.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from orchestrator.tuning.storage import stored_trial
from orchestrator.tuning.study import SAME_AS
from workers.config.metrics import BEST_STEP, STOPPED


def first_with(
    values: Mapping[str, Any], trial: optuna.trial.Trial, trials: Iterable[FrozenTrial]
) -> FrozenTrial | None:
    """The trial before this one that has these values, if it was not in vain."""
    for one in trials:
        known = one.user_attrs.get("values") == values and SAME_AS not in one.user_attrs
        if known and one.number < trial.number and one.state != TrialState.FAIL:
            return one
    return None


def repeat(trial: optuna.trial.Trial, first: FrozenTrial) -> None:
    """Note that a trial is not trained."""
    trial.set_user_attr("reason", f"same setting as trial {first.number}: not trained again")
    trial.set_user_attr(SAME_AS, first.number)


def settle(study: optuna.Study, store: optuna.storages.RDBStorage) -> None:
    """End the trials that were not trained, where those that they repeat have ended."""
    trials = study.get_trials(deepcopy=False)
    for one in trials:
        if SAME_AS in one.user_attrs and not one.state.is_finished():
            first = trials[one.user_attrs[SAME_AS]]
            if first.state.is_finished():
                _end(stored_trial(study, store, one.number), one, first)


def _end(trial: optuna.Trial, one: FrozenTrial, first: FrozenTrial) -> None:
    for step, value in first.intermediate_values.items():
        if step not in one.intermediate_values:
            trial.report(value, step)
    for noted in ("version", BEST_STEP, STOPPED):
        if noted in first.user_attrs:
            trial.set_user_attr(noted, first.user_attrs[noted])
    value = first.value if first.state == TrialState.COMPLETE else None
    trial.study.tell(trial, value, state=first.state)
