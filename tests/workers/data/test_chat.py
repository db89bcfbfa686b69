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
PART = {"type": "text", "text": "short."}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def rows(path: Path, records: list[dict[str, Any]]) -> list[Row]:
    """Read from JSON lines, or from Parquet by the path's name."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(training_rows(DataSpec(train=str(path), validation=str(path))))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(
    ("role", "field", "value"),
    [
        ("assistant", "tool_call_id", "c1"),
        ("assistant", "train", False),
        ("assistant", "name", "ann"),
        ("assistant", "function_call", {"name": "f", "arguments": "{}"}),
        ("assistant", "anything_else", "text"),
        ("user", "weight", 0),
        ("user", "tool_calls", [CALL]),
        ("system", "reasoning_content", "because"),
    ],
)
def test_a_field_that_is_not_rendered_is_refused(
    tmp_path: Path, name: str, role: str, field: str, value: object
) -> None:
    turn = {"role": role, "content": "a"}
    bad = {"messages": [USER, ANSWER, turn | {field: value}, ANSWER]}
    with pytest.raises(InputError) as caught:
        rows(tmp_path / name, [{"messages": [USER, ANSWER]}, bad])
    place = "row 2" if name.endswith("parquet") else "line 2"
    assert str(caught.value).startswith(
        f"{tmp_path / name}: {place}: turn 3: {field!r} is not rendered in a turn of role "
        f"{role!r}; allowed are role, content"
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_calls_tools_reasoning_and_weights_are_taken(tmp_path: Path, name: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": null}'}}
    bare: dict[str, Any] = {"name": "g", "arguments": '{"b": [1]}'}
    system: Any = "Be short."
    if name.endswith("jsonl"):  # a column of Parquet has one type
        bare = {"name": "g", "arguments": {"b": [1], "c": None}}
        system = [{"type": "text", "text": "Be "}, PART]
    turns = [
        {"role": "developer", "content": system},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, bare], "weight": 0.5},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"},
        ANSWER | {"reasoning": "because", "weight": 1},
    ]
    schema = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tools: list[Any] = [schema, {"type": "function", "function": {"name": "g"}}]
    record = {"messages": turns, "tools": json.dumps(tools)}
    [row] = rows(tmp_path / name, [record])
    assert row.messages == (
        {"role": "system", "content": "Be short."},
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                call | {"function": {"name": "f", "arguments": {"a": None}}},
                {"type": "function", "function": {"name": "g", "arguments": {"b": [1]}}},
            ],
            "weight": 0.5,
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"},
    )
    assert row.tools == ({"type": "function", "function": schema}, tools[1])
    assert (row.target, row.weight, row.calls) == ("a", 1, False)
    assert row.answer_turn == ANSWER | {"reasoning_content": "because", "weight": 1}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_tools_may_be_a_list_too(tmp_path: Path, name: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": None}}
    [row] = rows(tmp_path / name, [{"messages": [USER, ANSWER], "tools": [tool]}])
    assert row.tools == ({"type": "function", "function": {"name": "f"}},)


def test_tools_as_text_and_as_a_list_are_the_same(tmp_path: Path) -> None:
    parameters = {"properties": {"a": {"default": None, "enum": ["x", None]}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    records = [{"messages": [USER, ANSWER], "tools": one} for one in (tools, json.dumps(tools))]
    listed, text = (rows(tmp_path / "r.jsonl", [one])[0].tools for one in records)
    assert listed == text
    assert listed[0]["function"]["parameters"] == {"properties": {"a": {"enum": ["x", None]}}}


def test_a_function_that_stands_alone_says_its_type_too(tmp_path: Path) -> None:
    turns = {"messages": [USER, ANSWER]}
    [row] = rows(tmp_path / "r.jsonl", [turns | {"tools": [{"type": "function", "name": "f"}]}])
    assert row.tools == ({"type": "function", "function": {"name": "f"}},)
    with pytest.raises(InputError, match="tool 1: type must be function, not 'web_search'"):
        rows(tmp_path / "r.jsonl", [turns | {"tools": [{"type": "web_search", "name": "f"}]}])


@pytest.mark.parametrize("nothing", ["", " ", "\n", None])
def test_a_call_may_have_no_arguments(tmp_path: Path, nothing: Any) -> None:
    called = ANSWER | {"content": None, "tool_calls": [{"name": "f", "arguments": nothing}]}
    [row] = rows(tmp_path / "r.jsonl", [{"messages": [USER, called]}])
    assert row.target == '{"name": "f", "arguments": {}}'


def test_an_answer_may_be_a_call_alone(tmp_path: Path) -> None:
    [row] = rows(tmp_path / "r.jsonl", [{"messages": [USER, ANSWER | NOTHING]}])
    assert row.calls
    assert row.target == '{"name": "f", "arguments": {}}'


NOTHING = {"content": None, "tool_calls": [CALL]}
BAD_TURNS: dict[str, tuple[dict[str, Any], str]] = {
    "arguments are no JSON": (
        NOTHING | {"tool_calls": [{"name": "f", "arguments": "{"}]},
        "turn 2: call 1: arguments must be JSON, not '{'",
    ),
    "arguments are no object": (
        NOTHING | {"tool_calls": [{"name": "f", "arguments": "[]"}]},
        "turn 2: call 1: arguments must be an object, or its JSON text",
    ),
    "a call of nothing": (
        NOTHING | {"tool_calls": [{"id": "x"}]},
        "turn 2: call 1: name must hold text, not None",
    ),
    "half a character in a call": (
        NOTHING | {"tool_calls": [{"name": "f", "arguments": {"a": ["\ud800"]}}]},
        "turn 2: call 1: arguments holds half a character",
    ),
    "too deep": (
        NOTHING | {"tool_calls": [{"name": "f", "arguments": '{"a":' + "[" * 99 + "]" * 99 + "}"}]},
        "turn 2: call 1: arguments is nested deeper than 64",
    ),
    "a picture": (
        {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        "turn 2: content has a part of type 'image_url'; allowed is text",
    ),
    "no weight": ({"weight": True}, "turn 2: weight must be a number from 0 to 1, not True"),
    "too much weight": ({"weight": 2}, "turn 2: weight must be a number from 0 to 1, not 2"),
    "nothing to learn": ({"weight": 0}, "its last answer weighs 0, so nothing of it is learned"),
    "two reasonings": (
        {"reasoning": "a", "thinking": "b"},
        "turn 2: reasoning_content and reasoning and thinking are one; give one of them",
    ),
}


@pytest.mark.parametrize("kind", BAD_TURNS)
def test_a_turn_that_cannot_be_is_named(tmp_path: Path, kind: str) -> None:
    fields, said = BAD_TURNS[kind]
    with pytest.raises(InputError) as caught:
        rows(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER | fields]}])
    assert f"rows.jsonl: line 1: {said}" in str(caught.value)


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("{", "tools must be JSON, not '{'"),
        ([1], "tools must be a list of functions"),
        ([{"type": "function", "function": {}}], "tool 1: name must hold text, not None"),
        ([{"type": "retrieval", "function": {"name": "f"}}], "tool 1: type must be function"),
    ],
)
def test_tools_that_are_none_are_named(tmp_path: Path, tools: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        rows(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER], "tools": tools}])
    assert f"rows.jsonl: line 1: {said}" in str(caught.value)


def test_plain_text_has_no_room_for_calls(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    data = DataSpec(train=str(path), validation=str(path), template="plain")
    for more in ({"tools": [CALL]}, {"messages": [USER, ANSWER | {"reasoning": "r"}]}):
        path.write_text(json.dumps({"messages": [USER, ANSWER]} | more))
        with pytest.raises(InputError, match=r"want data\.template: chat"):
            list(training_rows(data))


def test_of_all_answers_one_must_weigh_something(tmp_path: Path) -> None:
    path, unlearned = tmp_path / "rows.jsonl", ANSWER | {"weight": 0}
    data = DataSpec(train=str(path), validation=str(path), loss_on="all")
    path.write_text(json.dumps({"messages": [USER, ANSWER, USER, unlearned]}))
    assert next(training_rows(data)).weight == 0
    path.write_text(json.dumps({"messages": [USER, unlearned, USER, unlearned]}))
    with pytest.raises(InputError, match="all its answers weigh 0"):
        list(training_rows(data))


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (None, "None"),
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
def test_functions_are_refused(tmp_path: Path, name: str) -> None:
    plain = {"prompt": "p", "target": "t"}
    for record in ({"messages": [USER, ANSWER]}, plain):
        with pytest.raises(InputError, match=" 1: column 'functions' is not rendered"):
            rows(tmp_path / name, [record | {"functions": [{"name": "f"}]}])


def test_a_prompt_column_may_be_called_tools(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tools": "saw", "target": "t"}')
    data = DataSpec(train=str(path), validation=str(path), prompt_columns=("tools",))
    assert next(training_rows(data)).prompt == "saw"


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
    with pytest.raises(InputError, match="turn 2: 'extra' is not rendered"):
        list(training_rows(DataSpec(train=str(path), validation=str(path))))
