"""What the demo asks: kinds that its champion can do, and whether the answers are right."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.demo.questions import ASKED, REQUESTS, DemoQuestion, questions
from orchestrator.demo.smart_home import TASKS, make, target

RIGHT = {
    "area": "guest room",
    "intent": "HassTurnOn(name=desk lamp, area=office)",
    "reply": "Turned on the lights",
    "intent_es": "HassGetCurrentTime()",
    "intent_de": "HassGetCurrentTime()",
}


def told(**values: float | None) -> dict[str, dict[str, Any]]:
    """As validation reports tasks."""
    found: dict[str, dict[str, Any]] = {}
    for task, value in values.items():
        found[task] = {"metric": "m", "loss": 1.0, "rows": 20}
        if value is not None:
            found[task]["value"] = value
    return found


def test_there_is_a_question_of_each_task_and_its_answer_is_known() -> None:
    assert {task: target(task, request) for task, request in REQUESTS.items()} == RIGHT
    assert RIGHT.keys() == TASKS.keys()


def test_training_has_none_of_them(tmp_path: Path) -> None:
    rows = pq.read_table(make(tmp_path) / "train.parquet", columns=["request"]).to_pylist()
    asked = {request.casefold() for request in REQUESTS.values()}
    assert len(rows) == 1500
    assert not asked & {row["request"].casefold() for row in rows}


def test_the_kinds_with_the_best_values_are_asked() -> None:
    values = told(area=0.9, intent=0.4, reply=0.7, intent_de=0.1, intent_es=0.75)
    chosen = questions(values)
    assert [one.task for one in chosen] == ["area", "intent_es", "reply"]
    assert chosen[0].kind == "area: exact_match 0.90 on 20 validation rows"
    assert chosen[0].prompt == "Name the area in this request: how warm is it in the guest room"


def test_without_values_the_first_kinds_are_asked_and_nothing_is_claimed() -> None:
    chosen = questions(told(intent_de=None, intent=None, area=None, reply=None))
    assert [one.kind for one in chosen] == ["area", "intent", "reply"]
    assert len(chosen) == ASKED


@pytest.mark.parametrize(("task", "answer"), RIGHT.items())
def test_a_right_answer_is_told_from_a_wrong_one(task: str, answer: str) -> None:
    question = DemoQuestion(task)
    assert question.verdict(f" {answer}\n") == "right"
    assert question.verdict("HassTurnOff(area=hall)") == f"wrong: {answer}"
    assert question.verdict("") == f"wrong: {answer}"


def test_slots_may_come_in_any_order() -> None:
    assert DemoQuestion("intent").verdict("HassTurnOn(area=office, name=desk lamp)") == "right"
    assert DemoQuestion("intent").verdict("HassTurnOn(name=desk lamp)").startswith("wrong: ")
