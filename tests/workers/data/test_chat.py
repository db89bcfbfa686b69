"""Chats: what would change what is learned is refused, and never dropped."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.rows import Row, training_rows

USER = {"role": "user", "content": "u"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def rows(path: Path, records: list[dict[str, Any]]) -> list[Row]:
    """Read from JSON lines, or from Parquet by the path's name."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return training_rows(DataSpec(train=str(path), validation=str(path)))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_calls", [CALL]),
        ("tool_call_id", "c1"),
        ("weight", 0),
        ("weight", 1.0),
        ("train", False),
        ("reasoning_content", "because"),
        ("name", "ann"),
        ("function_call", {"name": "f", "arguments": "{}"}),
        ("anything_else", "text"),
    ],
)
def test_a_field_that_is_not_rendered_is_refused(
    tmp_path: Path, name: str, field: str, value: object
) -> None:
    bad = {"messages": [USER, ANSWER, USER, ANSWER | {field: value}]}
    with pytest.raises(InputError) as caught:
        rows(tmp_path / name, [{"messages": [USER, ANSWER]}, bad])
    place = "row 2" if name.endswith("parquet") else "line 2"
    assert str(caught.value) == (
        f"{tmp_path / name}: {place}: turn 4: {field!r} is not rendered yet; allowed are role and "
        "content"
    )


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (None, "None"),
        ([{"type": "text", "text": "u"}], "[{'text': 'u', 'type': 'text'}]"),
        (3, "3"),
        ({"text": "u"}, "{'text': 'u'}"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_content_that_is_no_text_is_refused(
    tmp_path: Path, name: str, content: object, shown: str
) -> None:
    turns = [turn | {"content": content} for turn in (USER, ANSWER)]
    with pytest.raises(InputError) as caught:
        rows(tmp_path / name, [{"messages": turns}])
    assert str(caught.value).endswith(f" 1: turn 1: content must hold text, not {shown}")


@pytest.mark.parametrize("turn", [{"content": "u"}, {"role": None, "content": "u"}])
def test_a_turn_without_a_role_is_refused(tmp_path: Path, turn: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="turn 1: role must hold text, not None"):
        rows(tmp_path / "rows.jsonl", [{"messages": [turn, ANSWER]}])


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: turn 1: content holds half a character"):
        rows(tmp_path / "rows.jsonl", [{"messages": [USER | {"content": "\ud800"}, ANSWER]}])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_are_refused(tmp_path: Path, name: str, column: str) -> None:
    plain = {"prompt": "p", "target": "t"}
    for record in ({"messages": [USER, ANSWER]}, plain):
        with pytest.raises(InputError, match=f" 1: column '{column}' is not rendered yet"):
            rows(tmp_path / name, [record | {column: [CALL]}])


def test_a_prompt_column_may_be_called_tools(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tools": "saw", "target": "t"}')
    data = DataSpec(train=str(path), validation=str(path), prompt_columns=("tools",))
    assert training_rows(data)[0].prompt == "saw"


@pytest.mark.parametrize("tools", ["[]", "null", "", None, []])
def test_no_tools_are_no_tools_in_json_text_too(tmp_path: Path, tools: object) -> None:
    found = rows(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER], "tools": tools}])
    assert found[0].target == "a"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_fields_that_say_nothing_are_none(tmp_path: Path, name: str) -> None:
    """Parquet gives every turn all fields that any turn of the file has."""
    nothing: dict[str, Any] = {"function": {"name": None, "arguments": ""}}
    turn = ANSWER | {"tool_calls": [], "weight": None, "name": "", "function_call": nothing}
    found = rows(tmp_path / name, [{"messages": [USER, turn], "tools": None}])
    assert (found[0].messages, found[0].target) == ((USER,), "a")


def test_a_field_nested_as_deep_as_json_goes_is_one_line(tmp_path: Path) -> None:
    path, deep = tmp_path / "rows.jsonl", "[" * 800 + "1" + "]" * 800
    turn = json.dumps(ANSWER | {"extra": "?"}).replace('"?"', deep)
    path.write_text(f'{{"messages": [{json.dumps(USER)}, {turn}]}}')
    with pytest.raises(InputError, match="turn 2: 'extra' is not rendered yet"):
        training_rows(DataSpec(train=str(path), validation=str(path)))
