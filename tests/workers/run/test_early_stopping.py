"""When a run ends early, and which of its evaluations counts."""

from dataclasses import replace
from itertools import pairwise

import pytest

from workers.config.base import InputError
from workers.config.metrics import BEST_STEP, STOPPED, Mode
from workers.config.train import EarlyStoppingSpec
from workers.run.early_stopping import (
    Patience,
    WatchedMetric,
    early_end,
    final_value,
    has_ended,
)

SCORE = "validation/score"


def waiting(values: list[float], mode: Mode = "min", **spec: float) -> list[Patience]:
    """After each evaluation, the steps being 1, 2 and so on."""
    one = Patience(EarlyStoppingSpec.model_validate(spec), WatchedMetric(SCORE, mode))
    found = []
    for step, value in enumerate(values, 1):
        one = one.after({"step": step, "validation": {"score": value}})
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("values", "mode", "spec", "over", "best"),
    [
        ([3, 2, 1], "min", {"patience": 1}, None, 3),
        ([3, 2, 2.5, 1], "min", {"patience": 1}, 3, 2),
        ([3, 2, 2.5, 1, 4, 5], "min", {"patience": 2}, 6, 4),
        ([1, 2, 1.5, 1.4], "max", {"patience": 2}, 4, 2),
        ([2, 2, 2], "min", {"patience": 2}, 3, 1),
        ([3, 2.9, 2.8, 2.7], "min", {"patience": 3, "min_delta": 0.5}, 4, 4),
        ([3, 2.75, 2.5, 2.25, 2], "min", {"patience": 3, "min_delta": 0.5}, None, 5),
        ([3, 2.5, 2.5], "min", {"patience": 2, "min_delta": 0.5}, 3, 2),
        ([0, -1, -2], "max", {"patience": 2}, 3, 1),
    ],
    ids=[
        "ever better",
        "once worse",
        "a gain begins the count anew",
        "larger is better",
        "equal is no gain",
        "small gains are none, and the best still counts",
        "small gains add up",
        "a gain of min_delta is none",
        "negative",
    ],
)
def test_evaluations_without_a_gain_are_counted(
    values: list[float], mode: Mode, spec: dict[str, float], over: int | None, best: int
) -> None:
    found = waiting(values, mode, **spec)
    assert next((step for step, one in enumerate(found, 1) if one.is_over), None) == over
    last = found[-1 if over is None else over - 1]
    assert (last.best_step, last.best) == (best, values[best - 1])


@pytest.mark.parametrize("at", range(6))
def test_it_goes_on_from_a_checkpoint_in_the_middle(at: int) -> None:
    values = [3.0, 2.0, 2.5, 2.2, 2.1, 2.4]
    whole = waiting(values, patience=4)
    fresh = Patience(whole[0].spec, whole[0].watched)
    one = fresh.resumed((whole[at - 1] if at else fresh).state())
    for step, value in enumerate(values[at:], at + 1):
        one = one.after({"step": step, "validation": {"score": value}})
    assert one == whole[-1]
    assert one.is_over
    assert not any(before.is_over for before, _ in pairwise(whole))


def test_a_metric_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"^optimizer\.early_stopping watches validation/score, w"):
        Patience(EarlyStoppingSpec(patience=1), WatchedMetric(SCORE)).after({"step": 1})


def test_nothing_watches_a_run_that_does_not_ask_for_it() -> None:
    assert Patience.of(None, WatchedMetric()) is None


def test_a_report_says_how_a_run_stands_and_whether_it_is_the_last() -> None:
    going, over = waiting([3.0, 2.0, 2.5], patience=1)[1:]
    report = {"step": 3, "steps": 9, "validation": {"score": 2.5}}
    assert (has_ended(report), final_value(report, SCORE), early_end(report)) == (False, 2.5, {})
    still = {**report, "early_stopping": going.figures(stopped=False)}
    assert (has_ended(still), final_value(still, SCORE)) == (False, 2.0)
    ended = {**report, "early_stopping": over.figures(stopped=True)}
    flat = {
        "step": 3,
        "steps": 9,
        SCORE: 2.5,
        **{f"early_stopping/{name}": value for name, value in ended["early_stopping"].items()},
    }
    for last in (ended, flat):  # as a run reports it, and as Tune hands it on
        assert (has_ended(last), final_value(last, SCORE)) == (True, 2.0)
        assert early_end(last) == {BEST_STEP: 2, STOPPED: True}
    assert has_ended({**still, "step": 9})
    assert str(over) == f"{SCORE} has got no better in 1 evaluation; the best was at step 2"
    assert replace(over, waited=0).is_over is False
