"""JSON documents: lists, objects that hold one, rows, and what is none of these."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workers.data.sources.rows import Rows, all_columns, read
from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.layouts.recognition import Recognition
from workers.data.sources.json_document import Document
from workers.data.sources.records import records

A, B = {"a": "1"}, {"a": "2"}
CHAT = '{"messages": [{"role": "user", "content": "u"}]}'
TALK = '{"tools": "[]", "conversations": [{"from": "human", "value": "u"}]}'
TOOLS = '{"tools": [{"name": "f"}], "messages": [{"role": "user", "content": "u"}]}'


def read_text(tmp_path: Path, text: str | bytes) -> Rows:
    content = text.encode() if isinstance(text, str) else text
    (tmp_path / "rows.json").write_bytes(content)
    return read(str(tmp_path / "rows.json"))


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": "1"}, {"a": "2"}]',
        ' [ {"a":"1"}\n,\n{"a":"2"} ] \n\n',
        '{"rows": [{"a": "1"}, {"a": "2"}]}',
        '{"n": 2.5, "names": ["x"], "none": [], "b": {"b": 1}, "rows": [{"a": "1"}, {"a": "2"}]}',
        '{"rows": [{"a": "1"}, {"a": "2"}], "n": 2, "tags": [1, [2]]}\n',
        '{"a": "1"}\n{"a": "2"}\n',
        '\n\n{"a": "1"}\n\n{"a": "2"}',
        '{\n"a": "1"\n}\n{\n"a": "2"\n}',
        '{"a": "1"}{"a": "2"}',
    ],
)
def test_what_holds_two_rows(tmp_path: Path, text: str) -> None:
    assert read_text(tmp_path, text) == [A, B]


@pytest.mark.parametrize("text", [CHAT, TALK, CHAT + "\n" + CHAT, TOOLS + "\n" + TOOLS])
def test_a_chat_is_a_row_and_no_list_of_rows(tmp_path: Path, text: str) -> None:
    rows = read_text(tmp_path, text)
    assert len(rows) == len(text.splitlines())
    assert all("messages" in row or "conversations" in row for row in rows)


WRONG = [{"prompt": "WRONG", "target": "WRONG"}]
ENTITIES = {"prompt": "p", "target": "t", "entities": WRONG}
DEF = {"type": "function", "function": {"name": "f"}}
SAID = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "rows",
    [
        [ENTITIES],
        [dict(reversed(ENTITIES.items()))],
        [{**ENTITIES, "entities": WRONG * 3000, "more": WRONG}],
        [{"tools": [DEF], "messages": SAID}],
        [{"messages": SAID, "tools": [DEF]}] * 2,
    ],
)
def test_what_has_a_rows_columns_is_a_row_whatever_lists_it_holds(
    tmp_path: Path, rows: Rows, indent: int | None
) -> None:
    """The list was read in its place."""
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row, indent=indent) for row in rows))
    spec = DataSpec(train=str(path), validation=str(path))
    found = [dict(record) for _, record in records(str(path), Recognition(spec).columns)]
    wanted = ("prompt", "target", "messages", "tools")
    assert found == [{n: row[n] for n in wanted if n in row} for row in rows]


@pytest.mark.parametrize("count", [1, 3, 2500])
def test_rows_may_have_the_columns_of_a_turn(tmp_path: Path, count: int) -> None:
    row = {"from": "en", "role": "x", "prompt": "x", "target": "y", "task": "de"}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"task": "all", "data": [row] * count, "n": 1}))
    spec = DataSpec(train=str(path), validation=str(path))
    found = [dict(record) for _, record in records(str(path), Recognition(spec).columns)]
    assert found == [{"prompt": "x", "target": "y", "task": "de"}] * count


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "entities": WRONG}, "rows.json: row 1: no column 'target'"),
        ({"entities": WRONG, "prompt": "p"}, "rows.json: row 1: no column 'target'"),
        ({"entities": WRONG * 3000, "prompt": "p"}, "the columns of a row behind a long list"),
        (
            {"instruction": "", "output": "", "conversations": [], "x": WRONG},
            "has the columns of Alpaca .* and of ShareGPT",
        ),
    ],
)
def test_some_of_a_rows_columns_hold_no_rows(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(row))
    spec = DataSpec(train=str(path), validation=str(path))
    with pytest.raises(InputError, match=said):
        list(records(str(path), Recognition(spec).columns))


@pytest.mark.parametrize("text", ["", " \n", "[]", "[ ]\n"])
def test_nothing_is_no_row(tmp_path: Path, text: str) -> None:
    assert read_text(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1}, 2]', "row 2: must be a JSON object"),
        ("[[1]]", "row 1: must be a JSON object"),
        ("3", "must hold a list of JSON objects, and nothing else"),
        ("null", "must hold a list of JSON objects, and nothing else"),
        ('[{"a": 1}] [{"a": 2}]', "must hold a list of JSON objects, and nothing else"),
        ('[{"a": 1}', "row 2: is no JSON: ',' is missing"),
        ('[{"a": 1} {"a": 2}]', "row 2: is no JSON: ',' is missing"),
        ('[{"a": 1},]', "row 2: is no JSON: Expecting value"),
        ('[{"a": 1}, {"a": ]', "row 2: is no JSON: Expecting value"),
        ('[{"a": 1}, {"a": "x', "row 2: is no JSON: Unterminated string"),
        ('[{"a": "\n"}]', "row 1: is no JSON: Invalid control character"),
        ('[{"a": 1, "b": 2, "a": 3}]', "row 1: .*'a' is there twice"),
        ('{"n": 1, "rows": [{"a": 1}], "n": 2}', "'n' is there twice"),
        ('{"x": [{"a": 1}], "y": [{"a": 1}]}', "holds two lists, 'x' and 'y'"),
        ('{"a": [{"a": 1}]}\n{"a": [{"a": 1}]}\n3', "line 3: must be a JSON object"),
        ('{\n"x": [{"a": 1}]}{"x": 2}', "holds a list of rows, and more objects beside it"),
        ('{"x": [{"b": 1}]}', "row 1: no column 'prompt'; there are b"),
        pytest.param(
            '{"x": [' + '{"b": 1}, ' * 2000 + '{"b": 1}]}',
            "row 1: no column 'prompt'; there are b",
            id="long",
        ),
        ('{"a": 1}\n{"a": ', "line 2: is no JSON"),
        ('{"a" 1}', "is no JSON: ':' is missing"),
        ("{3: 1}", "is no JSON: a field's name must be text"),
        ('{"a": 1', "is no JSON: ',' is missing"),
        ('[{"a": ' + "9" * 5000 + "}]", "row 1: is no JSON: .*4300 digits"),
        ('[{"a": ' + "[" * 100_000, "row 1: .*nests too deep"),
        (b'[{"a": "\xe9"}]', "is no UTF-8"),
        ('[{"a": 1}]'.encode("utf-16"), "is no UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_text(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "rows.json" in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_blocks_may_end_anywhere(size: int) -> None:
    """Also within a character, a number, a word and an escape."""
    text = (
        '{"n": -12.5e-3, "t": true, "rows": ['
        '{"a": "ä\\u00e4\\n\\ud83c\\udf89", "b": null, "c": [1.25, 30]}, {"a": "\U0001f389"}]}'
    )
    content = b"\xef\xbb\xbf" + text.encode()
    blocks = (content[at : at + size] for at in range(0, len(content), size))
    found = [dict(row) for _, row in Document("f", blocks, all_columns).records()]
    assert found == [
        {"a": "ää\n\U0001f389", "b": None, "c": [1.25, 30]},
        {"a": "\U0001f389"},
    ]


def test_a_row_without_an_end_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.data.sources.json_stream.LARGEST", 2**20)
    with pytest.raises(InputError, match="row 1: is longer than 1 MiB"):
        read_text(tmp_path, '[{"a": "' + "x" * 6_000_000)


def test_a_mistake_far_from_the_end_is_said_at_once(tmp_path: Path) -> None:
    """Not after all that follows was read in vain: the rest would be an error of another kind."""
    text = b'[{"a": 1}, {"a": oops}, ' + b" " * 5_000_000 + b"\xff"
    with pytest.raises(InputError, match="row 2: is no JSON: Expecting value"):
        read_text(tmp_path, text)
