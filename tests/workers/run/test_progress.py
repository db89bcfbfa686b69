"""The figures of a step."""

import math
from collections.abc import Iterator

import pytest

from workers.run.progress import RECENT_STEPS, Progress, StepTimer
from workers.train.step import StepResult


class Clock:
    """Seconds that pass when we say so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def result(tokens: int = 50, **losses: float) -> StepResult:
    return StepResult(losses={"loss": 2.0, **losses}, grad_norm=1.0, lr=1e-3, tokens=tokens)


def steps(timer: StepTimer, clock: Clock, numbers: range, seconds: float) -> Iterator[Progress]:
    for number in numbers:
        clock.now += seconds
        yield timer.step(number, number / 8, result())


def test_speed_leaves_evaluations_out_and_the_rest_of_the_time_counts_them() -> None:
    clock = Clock()
    timer = StepTimer(steps=10, every=4, workers=2, clock=clock)
    timer.start()
    *_, fourth = steps(timer, clock, range(1, 5), seconds=2.0)
    assert (fourth.step, fourth.steps, fourth.epoch, fourth.workers) == (4, 10, 0.5, 2)
    assert (fourth.step_seconds, fourth.tokens_per_second) == (2.0, 25.0)
    assert fourth.pause_seconds is None
    assert fourth.eta_seconds == 6 * 2.0, "how long an evaluation takes is not known yet"

    clock.now += 7.0  # it evaluates and saves
    timer.start()
    fifth, *_, eighth = steps(timer, clock, range(5, 9), seconds=2.0)
    assert (fifth.step_seconds, fifth.pause_seconds) == (2.0, 7.0)
    assert fifth.eta_seconds == 5 * 2.0 + 2 * 7.0, "after step 8 and at the end"
    assert eighth.eta_seconds == 2 * 2.0 + 2 * 7.0, "its own evaluation is to come"
    clock.now += 7.0
    timer.start()
    *_, last = steps(timer, clock, range(9, 11), seconds=2.0)
    assert last.eta_seconds == 7.0


def test_speed_follows_the_last_steps() -> None:
    clock = Clock()
    timer = StepTimer(steps=100, every=100, workers=1, clock=clock)
    timer.start()
    (first,) = steps(timer, clock, range(1, 2), seconds=60.0)
    second, *_ = steps(timer, clock, range(2, 11), seconds=9.0)
    assert (first.step_seconds, second.step_seconds) == (60.0, 9.0), "the first one warms up"
    *_, last = steps(timer, clock, range(11, 11 + RECENT_STEPS), seconds=1.0)
    assert (last.step_seconds, last.tokens_per_second) == (1.0, 50.0)


def test_a_report_has_the_form_of_an_evaluations_report() -> None:
    timer = StepTimer(steps=10, every=4, workers=2)
    timer.start()
    even = timer.step(1, 0.1, result(load_balance=1.0)).report()
    assert even["step"] == 1
    assert even["train"]["loss"] == 2.0
    assert even["train"]["load_balance"] == 1.0
    assert "load_balance" not in timer.step(2, 0.2, result()).report()["train"]


@pytest.mark.parametrize(("loss", "shown"), [(1.5, 1.5), (math.inf, None), (math.nan, None)])
def test_figures_survive_json(loss: float, shown: float | None) -> None:
    timer = StepTimer(steps=10, every=4, workers=2)
    timer.start()
    progress = timer.step(1, 0.1, result(loss=loss))
    again = Progress.model_validate_json(progress.model_dump_json())
    assert again.loss == shown
    assert again.eta_seconds == progress.eta_seconds
