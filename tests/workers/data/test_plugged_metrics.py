"""Metrics of packages: found by name, imported when they are needed, held to what they promise."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packages import giving, install
from workers.config.base import InputError, validated
from workers.config.data import DataSpec
from workers.config.json_schema import json_schema
from workers.config.row_metrics import known_metrics
from workers.data.rows import Row, read_rows, validation_rows
from workers.data.task_metrics import check_fits
from workers.data.text_metrics import score

MODULE = "metric_of_a_test"
Give = Callable[..., None]


@pytest.fixture
def give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Give:
    """`give(text, place=…, metric="tone", package="tiny")`: a package with this module, which is
    installed until the test's end."""

    def make(
        text: str, place: str = f"{MODULE}:tone", metric: str = "tone", package: str = "tiny"
    ) -> None:
        folder = tmp_path / package
        monkeypatch.syspath_prepend(install(folder, giving(package, metric, place), {MODULE: text}))

    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield make  # type: ignore[misc]
    sys.modules.pop(MODULE, None)


def spec(folder: Path, *rows: dict[str, object], **changes: object) -> DataSpec:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", **row}) + "\n" for row in rows))
    return DataSpec.model_validate({"train": str(file), "validation": str(file), **changes})


def row(folder: Path) -> Row:
    (one,) = read_rows(data := spec(folder, {"target": "warm", "metric": "tone"}), str(data.train))
    return one


def test_a_row_and_a_job_name_it_like_one_of_ours(give: Give, tmp_path: Path) -> None:
    give("def tone(answer, row):\n    return (answer == row.answer) / (1 + len(row.prompt))\n")
    by_row = {"target": "warm", "metric": "tone"}
    by_job = {"target": "warm", "task": "talk"}
    for one in (by_row, by_job):
        rows = [*validation_rows(spec(tmp_path, one, metrics={"talk": "tone"}))]
        check_fits(rows)
        assert score(rows[0].metric, "warm", rows[0]) == 0.5
        assert score(rows[0].metric, "cold", rows[0]) == 0


def test_it_is_imported_only_when_a_row_is_scored_by_it(give: Give, tmp_path: Path) -> None:
    give("raise SystemExit('imported')")
    assert "tone" in known_metrics()
    data = spec(tmp_path, {"target": "warm"}, {"target": "warm", "task": "other"})
    check_fits(validation_rows(data))
    named = spec(tmp_path, {"target": "warm", "metric": "tone"})
    (one,) = validation_rows(named)
    assert MODULE not in sys.modules
    with pytest.raises(InputError, match="cannot be imported: SystemExit: imported"):
        score("tone", "warm", one)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_to_be_found", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def other(): ...", "cannot be imported: AttributeError: module"),
        ("tone = 3", f"{MODULE}:tone is no function of an answer and its row"),
        ("def tone(answer, row):\n    return 1 / 0", "line 1: metric tone of package tiny 1.0 fa"),
        ("def tone(answer):\n    return 1", "fails: TypeError: tone() takes 1 positional"),
        ("def tone(answer, row):\n    return 'good'", "fails: ValueError: could not convert"),
        ("def tone(answer, row):\n    return None", "fails: TypeError: float() argument"),
        ("def tone(answer, row):\n    return 1.5", "gives 1.5, not a number from 0 to 1"),
        ("def tone(answer, row):\n    return float('nan')", "gives nan, not a number from 0 to"),
        ("def tone(answer, row):\n    raise KeyError('a\\nb')", "fails: KeyError: 'a\\nb'"),
    ],
)
def test_what_it_does_wrong_is_one_line_with_its_name(
    text: str, said: str, give: Give, tmp_path: Path
) -> None:
    give(text)
    for attempt in (lambda: check_fits([row(tmp_path)]), lambda: score("tone", "", row(tmp_path))):
        with pytest.raises(InputError) as caught:
            attempt()
        assert said in str(caught.value)
        assert "metric tone of package tiny 1.0" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_one_that_no_package_here_gives_is_refused_with_the_machine(
    give: Give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    give("def tone(answer, row): return 1", metric="mood")
    said = (
        "unknown metric 'tone'; known are acc, acc_norm, exact_match, number_match, slot_f1, "
        "rouge_l, mood, and no package that is installed on node-7 gives it"
    )
    with pytest.raises(InputError) as caught:
        row(tmp_path)
    assert str(caught.value).endswith(f"rows.jsonl: line 1: {said}")
    values = {"train": "t", "validation": "v", "metrics": {"talk": "tone"}}
    with pytest.raises(InputError) as caught:
        validated(DataSpec, values, "job.yaml")
    assert str(caught.value) == f"job.yaml: metrics.talk: {said}"


def test_two_packages_of_one_name_are_refused_where_it_is_named(give: Give, tmp_path: Path) -> None:
    for package in ("tiny", "other"):
        give("def tone(answer, row):\n    return 1", package=package)
    with pytest.raises(InputError) as caught:
        score("tone", "", row(tmp_path))
    assert str(caught.value).endswith(
        "metric tone is given by package other 1.0 and package tiny 1.0; remove all but one"
    )


def test_no_package_takes_the_name_of_one_of_ours(give: Give, tmp_path: Path) -> None:
    give("raise SystemExit", metric="exact_match")
    (one,) = validation_rows(spec(tmp_path, {"target": "warm"}))
    assert score("exact_match", "Warm", one) == 1
    assert known_metrics().count("exact_match") == 1


def test_editors_know_it(give: Give) -> None:
    give("def tone(answer, row):\n    return 1")
    metrics = json_schema(DataSpec)["properties"]["metrics"]
    assert metrics["additionalProperties"]["enum"][-1] == "tone"
