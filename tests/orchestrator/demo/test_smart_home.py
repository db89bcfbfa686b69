"""The demo's data: unseen phrasings in validation and test, targets that the product confirms."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.demo.home import HOMES
from orchestrator.demo.smart_home import NO_AREA, TASKS, check, make, prompt
from orchestrator.demo.split import SPLITS
from workers.config.data import DataSpec
from workers.data.rows import read_rows
from workers.data.text_metrics import score

SIZES = {"train": 120, "validation": 25, "test": 25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("home"), seed=1, **SIZES)


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: pq.read_table(folder / f"{split}.parquet").to_pylist() for split in SPLITS}


def test_sizes_and_tasks(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert {split: len(found) for split, found in rows.items()} == SIZES
    for found in rows.values():
        assert {row["task"] for row in found} == set(TASKS)
    assert {row["task"] for row in rows["test"]} == {row["task"] for row in rows["test"][:20]}


def test_no_template_and_no_request_is_shared(rows: dict[str, list[dict[str, Any]]]) -> None:
    for column in ("template", "request", "id"):
        seen = [{row[column] for row in rows[split]} for split in SPLITS]
        assert not seen[0] & seen[1], column
        assert not seen[0] & seen[2], column
        assert not seen[1] & seen[2], column


def test_every_intent_is_what_the_product_understands(
    rows: dict[str, list[dict[str, Any]]],
) -> None:
    calls = [row for row in rows["train"] if row["task"].startswith("intent")]
    assert {row["language"] for row in calls} == {"en", "de", "es"}
    for row in calls:
        assert check(row["request"], row["target"], row["language"]).right, row


def test_areas_and_replies(rows: dict[str, list[dict[str, Any]]]) -> None:
    areas = {row["target"] for row in rows["train"] if row["task"] == "area"}
    assert areas <= {*HOMES["en"].areas, NO_AREA}
    assert len(areas) > 5
    replies = [row["target"] for row in rows["train"] if row["task"] == "reply"]
    assert len(set(replies)) > 8
    assert not [text for text in replies if "{" in text or "None" in text]


def test_the_same_seed_makes_the_same_rows(
    folder: Path, rows: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    again = make(tmp_path, seed=1, train=0, validation=0, test=0)
    assert [path.name for path in sorted(again.iterdir())] == sorted(f"{s}.parquet" for s in SPLITS)
    again = make(tmp_path, seed=1, **(SIZES | {"validation": 0, "test": 0}))
    assert pq.read_table(again / "train.parquet").to_pylist() == rows["train"]
    other = make(tmp_path, seed=2, **(SIZES | {"validation": 0, "test": 0}))
    assert pq.read_table(other / "train.parquet").to_pylist() != rows["train"]


def test_training_reads_it_and_gold_answers_score_one(folder: Path) -> None:
    data = DataSpec(
        train=str(folder / "train.parquet"), validation=str(folder / "validation.parquet")
    )
    for row in read_rows(data, data.validation):
        assert score(row.metric, row.target, row) == 1
        assert score(row.metric, "I cannot do that.", row) < 0.5


def test_check_tells_intent_and_slots_apart() -> None:
    request = "turn on the desk lamp in the kitchen"
    right = check(request, "HassTurnOn(area=Kitchen, name=desk lamp)")
    assert str(right.expected) == "HassTurnOn(name=desk lamp, area=kitchen)"
    assert (right.intent, right.slots, right.right) == (True, True, True)
    other = check(request, "HassTurnOff(name=desk lamp, area=kitchen)")
    assert (other.intent, other.slots, other.right) == (False, True, False)
    partial = check(request, "HassTurnOn(name=desk lamp)")
    assert (partial.intent, partial.slots, partial.right) == (True, False, False)
    assert not check(request, "Sure! I turned it on.").right
    assert check("sing me a song about rain", "HassTurnOn()").expected is None
    assert check(
        "schalte die Leselampe im Büro an", "HassTurnOn(name=Leselampe, area=Büro)", "de"
    ).right


def test_a_prompt_names_its_task() -> None:
    assert (
        prompt("area", "light up the attic") == "Name the area in this request: light up the attic"
    )
