"""JSON documents: lists, objects that hold one, rows, and what is none of these."""

from pathlib import Path

import pytest

from tests.workers.data.sources.rows import Rows, read
from workers.config.base import InputError
from workers.data.sources.json_document import Document

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
        ('{"x": [{"a": 1}]}\n{"x": [{"a": 1}]}\n3', "line 3: must be a JSON object"),
        ('{\n"x": [{"a": 1}]}{"x": 2}', "holds a list 'x', and more objects beside it"),
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
    found = [dict(row) for _, row in Document("f", blocks, lambda _, names: list(names)).records()]
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
