"""How many optimizer steps a run makes: the one place where epochs become steps."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil

from workers.config.base import InputError
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.epoch import Part, steps_of_an_epoch


def steps_of_run(optimizer: OptimizerSpec, parts: Callable[[], Sequence[Part]]) -> int:
    """Steps that a run makes of its training rows, which are asked for only where it says epochs:
    a stream's are not counted. InputError where its warm-up is longer."""
    if optimizer.epochs is None:
        assert optimizer.steps is not None, "the specification has one of them"
        return optimizer.steps
    # As it is written: 0.1 of 30 steps are 3, but ceil(0.1 * 30) is 4.
    epochs = Fraction(str(optimizer.epochs))
    steps = ceil(epochs * steps_of_an_epoch(parts(), optimizer.batch_size))
    if optimizer.warmup_steps >= steps:
        raise InputError(
            f"optimizer.warmup_steps is {optimizer.warmup_steps}, but must be below the steps of "
            f"the run: optimizer.epochs {optimizer.epochs:g} makes {steps} of these rows"
        )
    return steps


def in_steps(spec: TrainSpec, steps: int) -> TrainSpec:
    """The specification for who computes: so many steps, whichever way it says its length."""
    length = {"steps": steps, "epochs": None}
    return spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update=length)})
