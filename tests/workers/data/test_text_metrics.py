"""Metrics, against values worked out by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from workers.config.base import InputError
from workers.config.row_metrics import ROW_METRICS, check_metric
from workers.data.text_metrics import (
    CHOICE_METRICS,
    NEEDS,
    TEXT_METRICS,
    fits,
    score,
    score_choices,
)


@dataclass(frozen=True)
class Gold:
    answer: str = ""
    references: Sequence[str] = ()
    choices: Sequence[str] = ()
    answer_index: int = -1


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [("Card  not working ", "card not working", 1), ("card working", "card not working", 0)],
)
def test_exact_match(prediction: str, answer: str, value: float) -> None:
    assert score("exact_match", prediction, Gold(answer)) == value


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("16 / 4 = 4", "4", 1),
        ("The answer is 1,234.50.", "1234.5", 1),
        ("x = -5", "-5", 1),
        ("10-5", "5", 1),
        ("It is 4.", "4", 1),
        ("4 and then 5", "4", 0),
        ("no number", "4", 0),
        ("no number", "none either", 0),
        ("0.3333333333", "0.33333333", 1),
    ],
)
def test_number_match_takes_the_last_number(prediction: str, answer: str, value: float) -> None:
    assert score("number_match", prediction, Gold(answer)) == value


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [
        ("intent: Play; song: Hello", "intent: Play; song: hello", 1),
        ("intent: Play; song: Bye", "intent: Play; song: hello", 0.5),
        ("song: hello; intent: play", "intent: Play; song: hello", 1),
        ("intent: Play", "intent: Play; song: hello", 2 / 3),
        ("city: Paris, Texas; day: now", "city: paris, texas; day: now", 1),
        ("TurnOn(name=lamp, area=kitchen)", "TurnOn(area=kitchen, name=lamp)", 1),
        ("TurnOff(name=lamp, area=kitchen)", "TurnOn(name=lamp, area=kitchen)", 2 / 3),
        ("TurnOn(name=lamp, area=kit", "TurnOn(name=lamp, area=kitchen)", 2 / 3),
        ("GetTime()", "GetTime()", 1),
        ("intent=GetTime", "GetTime()", 1),
        ("nothing of the kind", "TurnOn(name=lamp)", 0),
        ("", "TurnOn(name=lamp)", 0),
        ("time: 7:30", "time: 7:30", 1),
    ],
)
def test_slot_f1(prediction: str, answer: str, value: float) -> None:
    assert score("slot_f1", prediction, Gold(answer)) == pytest.approx(value)


def test_rouge_l_takes_the_best_reference() -> None:
    gold = Gold("x", references=("something else", "the cat sat on the mat"))
    assert score("rouge_l", "the cat sat on the mat", gold) == 1
    # Longest common subsequence 3 of 3 and 6 words: precision 1, recall 1/2.
    assert score("rouge_l", "the cat sat", gold) == pytest.approx(2 / 3)


def test_choices_by_log_likelihood_and_by_character() -> None:
    gold = Gold(choices=("no", "not at all"), answer_index=1)
    assert score_choices("acc", [-2.0, -5.0], gold) == 0
    assert score_choices("acc_norm", [-2.0, -5.0], gold) == 1
    assert score_choices("acc", [-6.0, -5.0], gold) == 1
    with pytest.raises(ValueError, match="argument"):
        score_choices("acc", [-1.0], gold)


def test_an_unknown_metric_lists_the_known() -> None:
    with pytest.raises(InputError, match="row 3: unknown metric 'f1'; known are acc, acc_norm, ex"):
        check_metric("f1", "row 3")
    with pytest.raises(InputError, match="wants log-likelihoods"):
        score("acc", "yes", Gold("yes"))
    with pytest.raises(InputError, match="wants a text"):
        score_choices("rouge_l", [0.0], Gold("yes"))


def test_a_job_may_name_the_metrics_that_there_are() -> None:
    assert sorted(ROW_METRICS) == sorted((*CHOICE_METRICS, *TEXT_METRICS))
    assert NEEDS.keys() <= TEXT_METRICS.keys()


@pytest.mark.parametrize(
    ("metric", "answer", "can"),
    [
        ("exact_match", "", True),
        ("number_match", "It is 4.", True),
        ("number_match", "four", False),
        ("slot_f1", "song: hello", True),
        ("slot_f1", "GetTime()", True),
        ("slot_f1", "no pairs here", False),
        ("rouge_l", "a word", True),
        ("rouge_l", "7", True),
        ("rouge_l", "天気は晴れ", False),
    ],
)
def test_a_metric_fits_where_the_right_answer_scores(metric: str, answer: str, can: bool) -> None:
    gold = Gold(answer, references=(answer,))
    assert fits(metric, gold) == can
    if not can and metric != "slot_f1":  # of two answers without pairs it says that they are equal
        assert score(metric, answer, gold) == 0
    if can:
        assert score(metric, answer, gold) == 1
