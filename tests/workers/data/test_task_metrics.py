"""Metrics that fit none of their task's rows, and tasks that no row has."""

import json
from pathlib import Path
from typing import Any

import pytest

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.rows import validation_rows
from workers.data.task_metrics import check_fits, check_tasks


def data(folder: Path, validation: list[dict[str, Any]], **changes: Any) -> DataSpec:
    train = [{"prompt": "p", "target": "t", "task": "learned"}]
    for name, rows in (("train", train), ("validation", validation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    return DataSpec.model_validate({**places, **changes})


def row(target: str, task: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "p", "target": target, "task": task, **more}


def test_a_metric_that_can_score_no_row_of_a_task_is_refused(tmp_path: Path) -> None:
    rows = [row("t", "other"), row("many", "sums"), row("few", "sums")]
    spec = data(tmp_path, rows, metrics={"sums": "number_match"})
    with pytest.raises(InputError) as caught:
        check_fits(validation_rows(spec))
    assert str(caught.value).endswith(
        "validation.jsonl: line 2: metric number_match wants a number in the answer, but no row of "
        "task 'sums' has any"
    )


def test_one_that_is_named_by_the_rows_is_refused_alike(tmp_path: Path) -> None:
    spec = data(tmp_path, [row("天気は晴れ", "talk", metric="rouge_l")])
    with pytest.raises(InputError, match="rouge_l wants words of Latin letters or digits"):
        check_fits(validation_rows(spec))


def test_a_row_without_what_its_metric_wants_is_no_fault_beside_others(tmp_path: Path) -> None:
    rows = [row("none", "slots"), row("song: hello", "slots")]
    check_fits(validation_rows(data(tmp_path, rows, metrics={"slots": "slot_f1"})))


@pytest.mark.parametrize(
    ("task", "hint"), [("slotz", "did you mean slots?"), ("x", "there are learned, slots")]
)
def test_a_task_that_no_row_has_is_refused(task: str, hint: str, tmp_path: Path) -> None:
    spec = data(tmp_path, [row("song: hello", "slots")], metrics={task: "slot_f1"})
    with pytest.raises(InputError) as caught:
        check_tasks(spec)
    assert str(caught.value) == f"data.metrics: no row is of task {task!r}; {hint}"


def test_a_task_may_be_one_of_training_alone(tmp_path: Path) -> None:
    rows = [row("song: hello", "slots")]
    check_tasks(data(tmp_path, rows, metrics={"slots": "slot_f1", "learned": "rouge_l"}))
