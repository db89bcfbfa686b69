"""Rows: prompt columns, chats, choices and references, and a clear line for a wrong row."""

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.rows import read_rows, training_rows, validation_rows


def spec(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> DataSpec:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSpec(train=str(path), validation=str(path), **changes)


def test_prompt_columns_are_joined_by_a_newline(tmp_path: Path) -> None:
    data = spec(
        tmp_path,
        [{"instruction": "Add.", "input": "2 2", "out": "4"}],
        prompt_columns=("instruction", "input"),
        target_column="out",
    )
    (row,) = training_rows(data)
    assert row.messages == ({"role": "user", "content": "Add.\n2 2"},)
    assert (row.prompt, row.target, row.answer, row.references) == ("Add.\n2 2", "4", "4", ("4",))
    assert (row.task, row.metric, row.choices, row.answer_index) == (
        "default",
        "exact_match",
        (),
        -1,
    )


def test_a_chat_ends_with_its_last_assistant_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "u2"},
        {"role": "assistant", "content": "a2", "name": None},
        {"role": "user", "content": "thanks"},
    ]
    (row,) = training_rows(spec(tmp_path, [{"messages": turns}]))
    assert row.messages == tuple(turns[:4])
    assert row.target == "a2"


def test_several_sources_follow_one_another(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 2), ("c", 1)):
        rows = [{"prompt": f"{name}{i}", "target": "t"} for i in range(count)]
        rows[0]["task"] = f"own {name}"
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"source": f"{tmp_path}/{name}.jsonl"} for name in "abc"]
    sources[1] |= {"task": "quiz", "weight": 2}
    data = DataSpec(train=sources, validation="v.jsonl", max_rows=2)
    assert [(row.prompt, row.task, row.source) for row in training_rows(data)] == [
        ("a0", "own a", 0),
        ("a1", "default", 0),
        ("b0", "own b", 1),
        ("b1", "quiz", 1),
        ("c0", "own c", 2),
    ]
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(InputError, match=r"b\.jsonl: holds no rows"):
        list(training_rows(data))


def test_cells_of_csv_hold_lists_as_json_and_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "prompt,target,task,metric,choices,answer_index,answer,references\n"
        'p,b,quiz,acc,"[""a"", ""b""]",,,\n'
        'p,a,,acc,"[""a"", 3]",0,a,\n'
        "p,3,,number_match,,,4,\n"
        'p,t,,rouge_l,,,,"[""t"", ""u""]"\n'
    )
    rows = read_rows(DataSpec(train=str(path), validation=str(path)), str(path))
    assert [(row.task, row.choices, row.answer_index) for row in rows] == [
        ("quiz", ("a", "b"), 1),
        ("default", ("a", "3"), 0),
        ("default", (), -1),
        ("default", (), -1),
    ]
    assert [row.references for row in rows] == [("b",), ("a",), ("4",), ("t", "u")]
    chats = tmp_path / "chats.tsv"
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    chats.write_text("messages\n" + '"' + json.dumps(turns).replace('"', '""') + '"\n')
    (row,) = read_rows(DataSpec(train="t", validation="v"), str(chats))
    assert (row.messages, row.target) == ((turns[0],), "a")


@pytest.mark.parametrize("cell", ["a|b", "{}", "[1.0]", "[" * 100_000])
def test_a_cell_that_is_no_list_is_one_line(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,target,metric,choices\np,b,acc,{cell}\n")
    with pytest.raises(
        InputError, match=r"rows\.csv: line 2: column 'choices'.* must hold "
    ) as said:
        read_rows(DataSpec(train="t", validation="v"), str(path))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        (
            "messages",
            '[{"role": "user", "content": "u", "content": "v"},'
            ' {"role": "assistant", "content": "a"}]',
        ),
        ("tools", '[{"name": "f", "name": "g"}]'),
    ],
)
def test_json_in_a_cell_names_no_field_twice(tmp_path: Path, column: str, cell: str) -> None:
    """The last of them was learned; JSON lines refused it."""
    said = {"messages": '[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]'}
    row = said | {column: cell}
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    path = str(tmp_path / "rows.csv")
    with pytest.raises(InputError, match=rf"rows\.csv: line 2: .*{column}"):
        list(training_rows(DataSpec(train=path, validation=path)))


def test_choices_find_their_answer(tmp_path: Path) -> None:
    base = {"prompt": "p", "target": "b", "metric": "acc", "choices": ["a", "b"]}
    records = [base, base | {"answer_index": 0}, base | {"answer_index": -1}]
    rows = list(training_rows(spec(tmp_path, records)))
    assert [row.answer_index for row in rows] == [1, 0, 1]
    assert rows[0].choices == ("a", "b")


def test_an_answer_that_differs_from_the_target(tmp_path: Path) -> None:
    record = {"prompt": "p", "target": "16 / 4 = 4", "answer": 4, "references": []}
    (row,) = training_rows(spec(tmp_path, [record]))
    assert (row.answer, row.references) == ("4", ("4",))


def test_first_rows_and_rows_of_each_task(tmp_path: Path) -> None:
    records = [{"prompt": "p", "target": f"{i}", "task": "ab"[i % 2]} for i in range(10)]
    data = spec(tmp_path, records, max_rows=3)
    assert [row.target for row in training_rows(data)] == ["0", "1", "2"]
    assert [row.target for row in validation_rows(data, 2)] == ["0", "1", "2", "3"]
    assert len(list(validation_rows(data))) == 10


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"question": "p", "target": "t"}], "no column 'prompt'; there are question, target"),
        ([{"prompt": "p"}], "no column 'target'; there are prompt"),
        ([{"prompt": "p", "target": None}], "column 'target' must hold text, not None"),
        ([{"prompt": ["p"], "target": "t"}], "column 'prompt' must hold text"),
        ([{"prompt": "p", "target": "t"}, {"prompt": "p"}], "line 2: no column 'target'"),
        ([{"prompt": "p", "target": "  "}], "its target is empty"),
        (
            [{"prompt": "p", "target": "t", "metric": "bleu"}],
            "unknown metric 'bleu'; known are acc",
        ),
        ([{"prompt": "p", "target": "t", "metric": "acc"}], "wants `choices`"),
        (
            [{"prompt": "p", "target": "t", "metric": "acc", "choices": ["a", "b"]}],
            "wants `choices` with the answer among them",
        ),
        (
            [{"prompt": "p", "target": "a", "metric": "acc", "choices": ["a"], "answer_index": 3}],
            "wants `choices`",
        ),
        (
            [{"prompt": "p", "target": "a", "metric": "acc", "choices": ["a", ""]}],
            "one of its choices is empty",
        ),
        (
            [{"prompt": "p", "target": "a", "metric": "acc", "choices": "ab"}],
            "column 'choices' must hold a list",
        ),
        (
            [{"prompt": "p", "target": "a", "references": "ab"}],
            "column 'references' must hold a list",
        ),
        (
            [
                {
                    "prompt": "p",
                    "target": "a",
                    "metric": "acc",
                    "choices": ["a"],
                    "answer_index": "first",
                }
            ],
            "column 'answer_index' must hold a whole number",
        ),
        ([{"messages": "hello"}], "messages must be a list of turns"),
        ([{"messages": [{"role": "user", "content": "u"}]}], "need an assistant turn"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], "and one before it"),
        ([], "holds no rows"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        list(training_rows(spec(tmp_path, records)))
    assert message in str(caught.value)
    assert "rows.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


NO_TEXT = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a whole number among floats": 3.0,
    "a great float": 1e22,
    "a float of 32 bits": 0.10000000149011612,
    "a boolean": True,
    "a list": ["4"],
    "an object": {"a": "4"},
    "half a character": "a\ud83d",
}
FIELDS = ("prompt", "target", "answer", "task", "metric", "choices", "references")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", NO_TEXT)
def test_a_value_that_is_no_text_is_named_with_its_row(
    tmp_path: Path, name: str, field: str
) -> None:
    good = {"prompt": "p", "target": "4", "metric": "acc", "choices": ["4", "5"]}
    value = NO_TEXT[name]
    bad = good | {field: ["4", value] if field in ("choices", "references") else value}
    with pytest.raises(InputError) as caught:
        list(training_rows(spec(tmp_path, [good, bad])))
    message = str(caught.value)
    assert f"rows.jsonl: line 2: column {field!r}" in message
    assert "must hold text, not" in message or "half a character" in message
    assert "\n" not in message
    message.encode()


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["4", None]), "row 2: column 'target' must hold text, not None"),
        (pa.array([2.5, 3.0]), "row 2: column 'target' must hold text, not 3.0; write it as text"),
        (pa.array([2.5, float("nan")]), "row 2: column 'target' must hold text, not nan"),
        (pa.array([0.5, 0.1], pa.float32()), "row 2: column 'target' must hold text, not 0.1000"),
        (pa.array([True, False]), "row 1: column 'target' must hold text, not True"),
        (pa.array([["4"], ["5"]]), "row 1: column 'target' must hold text, not ['4']"),
        (pa.array([b"4", b"5"]), "row 1: column 'target' must hold text, not b'4'"),
    ],
)
def test_a_parquet_value_that_is_no_text_is_named_with_its_row(
    tmp_path: Path, column: pa.Array, message: str, hub: bool
) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"prompt": ["p", "q"], "target": column}), path)
    source = f"hub:{tmp_path}" if hub else str(path)
    with pytest.raises(InputError) as caught:
        list(training_rows(DataSpec(train=source, validation=source)))
    assert str(caught.value).startswith(f"{source}: {message}")


def test_a_decimal_is_text_digit_by_digit(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    prices = pa.array([Decimal("3.00"), Decimal("1E+2")], pa.decimal128(12, 2))
    pq.write_table(pa.table({"prompt": ["p", "q"], "target": prices}), path)
    found = list(training_rows(DataSpec(train=str(path), validation=str(path))))
    assert [row.target for row in found] == ["3.00", "100.00"]


def test_numbers_that_are_written_in_one_way_are_text(tmp_path: Path) -> None:
    records = [{"prompt": 7, "target": -12, "task": 0, "answer": 2.5, "references": [1, 0.1]}]
    (row,) = training_rows(spec(tmp_path, records))
    assert (row.prompt, row.target, row.task, row.answer) == ("7", "-12", "0", "2.5")
    assert row.references == ("1", "0.1")


@pytest.mark.parametrize("value", [True, 1.0, float("nan")])
def test_an_answers_place_is_a_whole_number(tmp_path: Path, value: object) -> None:
    record = {"prompt": "p", "target": "b", "metric": "acc", "choices": ["a", "b"]}
    with pytest.raises(InputError, match="'answer_index' must hold a whole number"):
        list(training_rows(spec(tmp_path, [record | {"answer_index": value}])))


def test_the_job_says_the_metric_of_rows_that_say_none(tmp_path: Path) -> None:
    plain = {"prompt": "p", "target": "song: hello"}
    records = [
        {**plain, "task": "slots"},
        {**plain, "task": "slots", "metric": None},
        {**plain, "task": "slots", "metric": "slot_f1"},
        {**plain, "task": "other"},
        {**plain, "task": "other", "metric": "rouge_l"},
        plain,
    ]
    named = {"slots": "slot_f1", "default": "rouge_l"}
    rows = list(training_rows(spec(tmp_path, records, metrics=named)))
    assert [row.metric for row in rows] == [*["slot_f1"] * 3, "exact_match", "rouge_l", "rouge_l"]


def test_two_metrics_for_a_row_are_refused(tmp_path: Path) -> None:
    records = [{"prompt": "p", "target": "t", "task": "slots", "metric": "rouge_l"}]
    with pytest.raises(InputError) as caught:
        list(training_rows(spec(tmp_path, records, metrics={"slots": "slot_f1"})))
    assert str(caught.value).endswith(
        "rows.jsonl: line 1: its metric is rouge_l, but data.metrics says slot_f1 for task "
        "'slots'; leave one of them out"
    )


def test_a_metric_of_the_job_wants_its_choices_too(tmp_path: Path) -> None:
    records = [{"prompt": "p", "target": "t", "task": "quiz"}]
    with pytest.raises(InputError, match="line 1: metric acc wants `choices`"):
        list(training_rows(spec(tmp_path, records, metrics={"quiz": "acc"})))


MULTITASK = Path(__file__).parents[4] / "shared" / "data" / "multitask_mini"


@pytest.mark.skipif(
    not MULTITASK.is_dir(), reason="the benchmark's data are not beside the project"
)
def test_the_multitask_set_is_read_whole() -> None:
    data = DataSpec(
        train=str(MULTITASK / "train.parquet"),
        validation=str(MULTITASK / "validation.parquet"),
        prompt_columns=("instruction", "input"),
    )
    rows = list(read_rows(data, data.train))
    assert len(rows) == 800
    assert {row.metric for row in rows} == {
        *("acc", "acc_norm", "exact_match", "number_match", "slot_f1", "rouge_l")
    }
    assert all(row.choices[row.answer_index] == row.answer for row in rows if row.choices)
    (sums,) = {row.metric for row in rows if row.answer != row.target}
    assert sums == "number_match"
