"""Epochs as steps."""

import pytest

from workers.config.base import InputError
from workers.config.train import OptimizerSpec
from workers.data.epoch import Part
from workers.data.run_length import steps_of_run


@pytest.mark.parametrize(
    ("epochs", "parts", "batch_size", "steps"),
    [
        (3, [Part(32)], 8, 12),
        (2, [Part(33)], 8, 10),
        (0.5, [Part(40)], 8, 3),
        (0.01, [Part(40)], 8, 1),
        (0.1, [Part(240)], 8, 3),
        (2, [Part(16, 2.0), Part(10, 0.5)], 8, 10),
    ],
    ids=["whole", "a rest", "half", "at least one", "as it is written", "weights"],
)
def test_a_run_makes_as_many_steps_as_its_epochs_take(
    epochs: float, parts: list[Part], batch_size: int, steps: int
) -> None:
    optimizer = OptimizerSpec(epochs=epochs, batch_size=batch_size)
    assert steps_of_run(optimizer, lambda: parts) == steps


def test_rows_are_not_asked_for_where_it_says_steps() -> None:
    def never() -> list[Part]:
        raise AssertionError("rows were counted")

    assert steps_of_run(OptimizerSpec(steps=7), never) == 7


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    optimizer = OptimizerSpec(epochs=0.5, batch_size=8, warmup_steps=3)
    assert steps_of_run(optimizer, lambda: [Part(64)]) == 4
    with pytest.raises(InputError, match=r"warmup_steps is 3, .*epochs 0\.5 makes 3 of these"):
        steps_of_run(optimizer, lambda: [Part(40)])
