"""Who suggests a trial's values, and who stops it early."""

from typing import Any

import optuna
import pytest

from search_spaces.samplers import pruner, sampler
from search_spaces.space import SearchSpace
from search_spaces.spec import SearchSpec
from workers.config.base import validated
from workers.config.train import TrainSpec


def suggested(search: SearchSpec, number: int, tell: float | None = None) -> float:
    """What a trial gets after two others, of which one still runs unless `tell` ends it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler(search, 0))
    for value in (1.0, tell):
        study.sampler = sampler(search, 0)
        trial = study.ask()
        trial.suggest_float("lr", 0.0, 1.0)
        if value is not None:
            study.tell(trial, value)
    study.sampler = sampler(search, number)
    found: float = study.ask().suggest_float("lr", 0.0, 1.0)
    return found


@pytest.mark.parametrize("startup_trials", [1, 9], ids=["modelled", "random"])
def test_a_trial_gets_the_same_in_any_process_and_no_two_the_same(startup_trials: int) -> None:
    search = SearchSpec(startup_trials=startup_trials)
    assert suggested(search, 2) == suggested(search, 2)
    assert suggested(search, 2) != suggested(search, 3)
    assert suggested(search, 2) != suggested(SearchSpec(seed=1, startup_trials=startup_trials), 2)


def test_random_trials_come_before_the_model() -> None:
    random, modelled = (SearchSpec(startup_trials=most) for most in (9, 1))
    assert suggested(random, 2, tell=0.0) == suggested(random, 2, tell=5.0)
    assert suggested(modelled, 2, tell=0.0) != suggested(modelled, 2, tell=5.0)


def test_others_that_run_are_kept_away_from() -> None:
    alone, beside = (SearchSpec(startup_trials=1, max_concurrent=most) for most in (1, 2))
    assert suggested(alone, 2) != suggested(beside, 2)


@pytest.mark.parametrize(
    ("search", "space", "steps", "expected"),
    [
        ({}, {"adapter.rank": 8}, 40, {"max_t": 40, "grace_period": 10}),
        ({"grace_evaluations": 3}, {"adapter.rank": 8}, 40, {"max_t": 40, "grace_period": 30}),
        ({"grace_evaluations": 9}, {"adapter.rank": 8}, 40, {"max_t": 40, "grace_period": 40}),
        ({}, {"adapter.rank": 8}, 80, {"max_t": 80, "grace_period": 10}),
        (
            {"metric": "validation/score", "mode": "max", "reduction_factor": 2},
            {"adapter.rank": 8},
            40,
            {"metric": "validation/score", "mode": "max", "reduction_factor": 2},
        ),
    ],
    ids=["first rung", "later", "never", "longest trial", "what is compared"],
)
def test_rungs_follow_the_specification(
    search: dict[str, Any], space: dict[str, Any], steps: int, expected: dict[str, Any]
) -> None:
    train = validated(
        TrainSpec,
        {
            "model": {"path": "m"},
            "data": {"train": "a", "validation": "b"},
            "optimizer": {"steps": 40},
            "evaluation": {"every": 10},
        },
        "test",
    )
    settings = pruner(SearchSpec(**search), SearchSpace.resolve(space, train), steps)
    assert settings["time_attr"] == "step"
    assert settings.items() >= expected.items()
