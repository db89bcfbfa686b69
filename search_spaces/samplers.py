"""Who suggests a trial's values, and who stops it early."""

from typing import TYPE_CHECKING, Any

from search_spaces.space import SearchSpace
from search_spaces.spec import SearchSpec

if TYPE_CHECKING:
    import optuna


def sampler(search: SearchSpec, number: int) -> "optuna.samplers.TPESampler":
    """TPE for the trial of this number. Running trials count as bad, to keep others away."""
    import numpy as np
    import optuna

    seeds = np.random.SeedSequence([search.seed, number]).generate_state(1)
    return optuna.samplers.TPESampler(
        seed=int(seeds[0]),
        n_startup_trials=search.startup_trials,
        constant_liar=search.max_concurrent > 1,
    )


def pruner(search: SearchSpec, space: SearchSpace, steps: int) -> dict[str, Any]:
    """Settings of Ray Tune's ASHAScheduler: rungs up to the most optimizer `steps` of a trial, the
    first one after the evaluations that every trial is given."""
    return {
        "time_attr": "step",
        "metric": search.metric,
        "mode": search.mode,
        "max_t": steps,
        "grace_period": min(steps, search.grace_evaluations * space.train.evaluation.every),
        "reduction_factor": search.reduction_factor,
    }
