"""What a study searches, and how."""

from typing import Annotated, Any, Literal

from pydantic import Field

from workers.config.base import NonNegative, PositiveInt, Spec
from workers.config.metrics import VALIDATION_LOSS, VALIDATION_SCORE, Mode, value_of_task


class SearchSpec(Spec):
    """The study: what may vary, and how trials are compared."""

    space: str | dict[str, Any] | None = "moe_lora"
    """Name of a preset, path of a YAML file, or the space itself; None varies nothing."""
    trials: PositiveInt = 8
    """Trials in all."""
    metric: Annotated[str, Field(examples=[VALIDATION_SCORE, value_of_task("TASK")])] = (
        VALIDATION_LOSS
    )
    """Metric that trials are compared on, as trials report it."""
    mode: Mode = "min"
    """Whether a smaller or a larger metric is better."""
    max_concurrent: PositiveInt = 1
    """Trials that run at the same time."""
    pack: PositiveInt | Literal["auto"] = 1
    """So many of them share one copy of the base model, and train in joint steps; each keeps its
    own settings, and ends as it would alone. 1 gives every trial its own copy; auto takes as many
    as leave no worker without trials and as fit into its memory."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores reserved for each worker of a trial."""
    gpus_per_worker: NonNegative = 0
    """GPUs reserved for each worker of a trial."""
    wait_seconds: NonNegative = 600
    """How long the study waits for room for a trial, which an autoscaler is asked for."""
    grace_evaluations: PositiveInt = 1
    """ASHA stops no trial before so many evaluations."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """ASHA keeps one trial of so many at each rung."""
    retries: Annotated[int, Field(ge=0)] = 1
    """A trial that fails is started again so many times, from its last checkpoint."""
    repeat: bool = False
    """Train a setting again where the search suggests it again, as it does in a small space. Else
    such a trial gets what the one before got."""
    startup_trials: PositiveInt = 4
    """Random trials before TPE begins to model."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search."""
