"""A study as its trials ran it, for plots: every varied field in every trial."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from orchestrator.tuning.study import Study
from search_spaces.ranges import Interval, Range
from search_spaces.space import SearchSpace
from workers.config.train import TrainSpec

_FEW = 12


def with_effective_values(study: Study) -> optuna.Study:
    """The study in memory, its finished trials with all that they ran with.

    A field that was not asked (no router, no contrastive weight) ran with the job's value. Optuna's
    plots leave trials without it out; here they see it. Trials that did not finish keep their
    place, and nothing else.
    """
    train = TrainSpec.model_validate(study.job["train"])
    space = SearchSpace.resolve(study.job["search"]["space"], train)
    ranges = {parameter.path: parameter.range for parameter in space.parameters}
    paths = study.optuna.user_attrs["varied"]
    trials = study.optuna.get_trials(deepcopy=False)
    ran = {
        trial.number: {
            path: _plain(space.value(path, trial.user_attrs["values"])) for path in paths
        }
        for trial in trials
        if trial.state == TrialState.COMPLETE
    }
    kinds = {
        path: _distribution(ranges.get(path), [values[path] for values in ran.values()])
        for path in (paths if ran else [])
    }
    whole = optuna.create_study(direction=study.optuna.direction)
    for trial in trials:
        values = ran.get(trial.number, {})
        whole.add_trial(
            optuna.create_trial(
                state=TrialState.COMPLETE if trial.number in ran else TrialState.FAIL,
                value=trial.value if trial.number in ran else None,
                params={short(path): value for path, value in values.items()},
                distributions={short(path): kinds[path] for path in values},
            )
        )
    return whole


def short(path: str) -> str:
    """A field's name without its group, which tables and figures have no room for."""
    return path.rpartition(".")[2]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, list) else value


def _distribution(asked: Range | None, ran: Sequence[Any]) -> BaseDistribution:
    """What a figure's axis spans: the range, and values outside that trials ran with."""
    if not isinstance(asked, Interval) or (asked.integer and len(set(ran)) <= _FEW):
        return CategoricalDistribution(sorted(set(ran), key=lambda v: (str(type(v)), v)))
    low, high = min(asked.low, *ran), max(asked.high, *ran)
    log = asked.log and low > 0
    if asked.integer:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)
