"""Rows as people have them from LLaMA-Factory, axolotl, TRL and OpenAI: recognised and said."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.rows import Row, read_rows

CALL = {"name": "weather", "arguments": {"city": "Kyiv"}}
TURNS = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(role: str, value: str) -> dict[str, str]:
    return {"from": role, "value": value}


def rows_of(tmp_path: Path, records: list[dict[str, Any]], **changes: Any) -> list[Row]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return read_rows(DataSpec(train=str(path), validation=str(path), **changes), str(path))


def asked(row: Row) -> tuple[list[dict[str, Any]], str]:
    return [dict(one) for one in row.messages], row.target


@pytest.mark.parametrize(
    ("record", "turns", "target"),
    [
        ({"instruction": "Add.", "output": "4"}, [turn("user", "Add.")], "4"),
        ({"instruction": "Add.", "input": "", "output": "4"}, [turn("user", "Add.")], "4"),
        ({"instruction": "Add.", "input": None, "output": 4}, [turn("user", "Add.")], "4"),
        (
            {"instruction": "Add.", "input": "2 2", "output": "4", "system": "", "history": []},
            [turn("user", "Add.\n2 2")],
            "4",
        ),
        (
            {"instruction": "And 3?", "output": "5", "system": "s", "history": [["2?", "4"]]},
            [
                turn("system", "s"),
                turn("user", "2?"),
                turn("assistant", "4"),
                turn("user", "And 3?"),
            ],
            "5",
        ),
    ],
)
def test_alpaca(
    tmp_path: Path, record: dict[str, Any], turns: list[dict[str, str]], target: str
) -> None:
    (row,) = rows_of(tmp_path, [record | {"task": "sums", "id": "7"}])
    assert asked(row) == (turns, target)
    assert row.task == "sums"
    assert row.layout == "Alpaca (instruction, output)"


def test_sharegpt(tmp_path: Path) -> None:
    talk = [said("system", "s"), said("human", "u"), said("gpt", "a"), said("human", "v")]
    records = [
        {"conversations": [*talk, said("gpt", "b")]},
        {"conversations": [said("user", "u"), said("assistant", "a")], "system": "s"},
        {"conversations": [said("human", "u"), {**said("gpt", "a"), "weight": None}]},
        {"conversations": TURNS},
    ]
    rows = rows_of(tmp_path, records)
    before = [turn("system", "s"), turn("user", "u"), turn("assistant", "a"), turn("user", "v")]
    assert [asked(row) for row in rows] == [
        (before, "b"),
        ([turn("system", "s"), turn("user", "u")], "a"),
        ([turn("user", "u")], "a"),
        ([turn("user", "u")], "a"),
    ]
    assert {row.layout for row in rows} == {"ShareGPT (conversations)"}


def test_sharegpt_with_calls(tmp_path: Path) -> None:
    """As LLaMA-Factory writes them: tools and calls are JSON text."""
    record = {
        "conversations": [
            said("human", "Is it warm?"),
            said("function_call", json.dumps(CALL)),
            said("observation", "20"),
            said("gpt", "Yes."),
        ],
        "tools": json.dumps([{"name": "weather", "parameters": {"type": "object"}}]),
    }
    (row,) = rows_of(tmp_path, [record])
    assert [one["role"] for one in row.messages] == ["user", "assistant", "tool"]
    assert row.messages[1]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert row.messages[2]["content"] == "20"
    assert row.tools[0]["function"]["name"] == "weather"
    assert row.target == "Yes."


def test_what_else_a_turn_of_sharegpt_says_is_kept_or_refused(tmp_path: Path) -> None:
    call = said("function_call", json.dumps(CALL))
    talk = [said("human", "u"), call, said("observation", "r"), said("gpt", "a")]

    def rows(**more: Any) -> list[Row]:
        turns = [talk[0], call | more, *talk[2:]]
        return rows_of(tmp_path, [{"conversations": turns}], loss_on="all")

    [row] = rows(weight=0, role=None, tool_calls=[])
    assert (row.messages[1]["weight"], len(row.messages[1]["tool_calls"])) == (0, 1)
    with pytest.raises(InputError, match="turn 2: 'audio' is not rendered"):
        rows(audio="a.wav")
    for more in ({"role": "user"}, {"content": "c"}, {"tool_calls": [CALL]}):
        with pytest.raises(InputError, match=f"turn 2: has from, value and '{next(iter(more))}'"):
            rows(**more)


def test_prompts_and_completions(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        [
            {"prompt": "p", "completion": " c"},
            {"prompt": TURNS[:1], "completion": TURNS[1:]},
        ],
    )
    assert [asked(row) for row in rows] == [([turn("user", "p")], " c"), ([turn("user", "u")], "a")]
    assert {row.layout for row in rows} == {"prompts and completions (prompt, completion)"}


def test_openai_files(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, [{"messages": TURNS}])
    assert asked(row) == ([turn("user", "u")], "a")
    assert row.layout == "OpenAI chats (messages)"


@pytest.mark.parametrize(
    "table",
    [
        {"instruction": ["Add."], "input": ["2 2"], "output": ["4"]},
        {"conversations": [[said("human", "Add.\n2 2"), said("gpt", "4")]]},
        {"prompt": ["Add.\n2 2"], "completion": ["4"], "other": [1]},
        {
            "conversations": [
                '[{"from": "human", "value": "Add.\\n2 2"}, {"from": "gpt", "value": "4"}]'
            ]
        },
    ],
)
def test_columns_are_recognised_in_files_by_columns(tmp_path: Path, table: dict[str, Any]) -> None:
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    (row,) = read_rows(DataSpec(train="t", validation="v"), str(tmp_path / "rows.parquet"))
    assert asked(row) == ([turn("user", "Add.\n2 2")], "4")
    assert row.layout


def test_empty_cells_of_csv_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('instruction,input,output,history\nAdd.,,4,\nAnd?,x,5,"[[""u"", ""a""]]"\n')
    rows = read_rows(DataSpec(train="t", validation="v"), str(path))
    assert [asked(row)[0] for row in rows] == [
        [turn("user", "Add.")],
        [turn("user", "u"), turn("assistant", "a"), turn("user", "And?\nx")],
    ]


def test_the_jobs_own_columns_come_first(tmp_path: Path) -> None:
    record = {"prompt": "p", "target": "t", "completion": "c", "instruction": "i", "output": "o"}
    (row,) = rows_of(tmp_path, [record])
    assert (row.prompt, row.target, row.layout) == ("p", "t", "")
    (row,) = rows_of(tmp_path, [record], prompt_columns="instruction", target_column="output")
    assert (row.prompt, row.target, row.layout) == ("i", "o", "")
    with pytest.raises(InputError, match="line 1: no column 'question', 'target'; there are instr"):
        rows_of(tmp_path, [{"instruction": "i", "output": "o"}], prompt_columns="question")


ALPACA = {"instruction": "i", "output": "o"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"question": "q", "answer": "a"}],
            "line 1: no column 'prompt', 'target'; there are question, answer; name yours by "
            "data.prompt_columns and data.target_column, or data.messages_column",
        ),
        ([{"instruction": "i"}], "line 1: no column 'prompt', 'target'; there are instruction;"),
        ([ALPACA, {"instruction": "i"}], "line 2: no column 'prompt', 'target'; there are instr"),
        (
            [ALPACA, {"prompt": "p", "target": "t"}],
            "line 2: is laid out as the job's own columns, but ",
        ),
        (
            [{"messages": TURNS}, ALPACA],
            "line 1 as the job's own columns; make each a source of its own",
        ),
        (
            [ALPACA, {"conversations": TURNS}],
            "line 2: is laid out as ShareGPT (conversations), but ",
        ),
        (
            [ALPACA | {"conversations": TURNS}],
            "line 1: has the columns of Alpaca (instruction, output) and of ShareGPT",
        ),
        ([{"instruction": "i", "output": None}], "line 1: its target is empty"),
        ([{"instruction": ["i"], "output": "o"}], "column 'instruction' must hold text"),
        ([ALPACA | {"system": 2.5 * 2}], "column 'system' must hold text"),
        ([ALPACA | {"history": "x"}], "column 'history' must hold a list of pairs"),
        ([ALPACA | {"history": [["u"]]}], "column 'history', pair 1, must hold two texts"),
        ([ALPACA | {"history": ["ua"]}], "column 'history', pair 1, must hold a list"),
        ([{"conversations": "hello"}], "conversations must be a list of turns with from and value"),
        ([{"conversations": ["hello"]}], "conversations must be a list of turns with from and"),
        ([{"conversations": [said("alien", "x")]}], "turn 1: from is 'alien', but must be one of"),
        ([{"conversations": [{"from": ["a"], "value": "x"}]}], "turn 1: from is ['a'], but must"),
        ([{"conversations": [{"from": "human"}]}], "turn 1: value must hold text, not None"),
        ([{"conversations": [said("human", "u")]}], "need an assistant turn"),
        (
            [{"conversations": [said("function_call", "weather()")]}],
            "turn 1: value of a function_call must be JSON",
        ),
        (
            [{"conversations": [said("system", "s"), said("human", "u")], "system": "t"}],
            "has a column 'system' and a system turn",
        ),
        (
            [{"conversations": [said("human", "u"), {**said("gpt", "a"), "mood": "glad"}]}],
            "turn 2: 'mood' is not rendered",
        ),
        ([{"prompt": "p", "completion": TURNS}], "column 'completion' must hold text"),
        ([{"prompt": TURNS, "completion": "c"}], "column 'prompt' must hold text"),
    ],
)
def test_what_fits_by_half_or_is_mixed_is_one_line(
    tmp_path: Path, records: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path, records)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_files_of_several_layouts_are_several_sources(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([ALPACA]))
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"conversations": TURNS}]}))
    with pytest.raises(InputError, match=r"b\.json: row 1: is laid out as ShareGPT .*a\.json: row"):
        read_rows(DataSpec(train="t", validation="v"), str(tmp_path))
