"""Rows come back as they were written, as views of a file that all processes share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from workers.data.example import Example, Span
from workers.data.rows import Row
from workers.data.store import arrow
from workers.data.store.arrow import StoredExamples

Encoded = tuple[Row, Example]

CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": [1]}}]}


def row(number: int) -> Row:
    """With text of every kind; a lone surrogate, too, which no UTF-8 has."""
    return Row(
        messages=({"role": "system", "content": "é\ud800"}, {"role": "user", "content": "?"}),
        target=f"answer {number}",
        task="t",
        metric="acc",
        answer="a",
        references=("a", "b"),
        choices=("a", "b") if number % 2 else (),
        answer_index=0,
        where=f"rows.jsonl: line {number}",
        source=number % 3,
        answer_turn=CALL if number % 5 == 1 else None,
        tools=({"type": "function", "function": {"name": "f", "parameters": {}}},),
        weight=0.1,
    )


def example(number: int, largest: int) -> Example:
    ids = tuple((number + place) % (largest + 1) for place in range(1 + number % 50))
    spans = [Span(0, len(ids)), Span(0, 1, 0.1)][: number % 3]
    return Example((*ids, largest), tuple(spans))


def kept(count: int, largest: int = 255) -> Iterator[Encoded]:
    return ((row(number), example(number, largest)) for number in range(count))


def read(path: Path) -> StoredExamples:
    return StoredExamples(path.open("rb"))


def plain(one: Example) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    return tuple(map(int, one.ids)), one.spans


@pytest.mark.parametrize("vocabulary", [256, 65_536, 65_537, 200_000])
def test_rows_come_back_as_they_were_over_several_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: int
) -> None:
    monkeypatch.setattr(arrow, "ROWS", 7)
    monkeypatch.setattr(arrow, "TOKENS", 100)
    arrow.write(tmp_path / "a", kept(100, vocabulary - 1), vocabulary, scored=True)
    found = read(tmp_path / "a")
    wanted = list(kept(100, vocabulary - 1))
    assert len(found) == len(found.rows) == 100
    assert [plain(one) for one in found] == [plain(example) for _, example in wanted]
    assert list(found.rows) == [row for row, _ in wanted]
    assert found.lengths.tolist() == [len(example) for _, example in wanted]
    there = {int(one) for _, example in wanted for one in example.ids}
    asked = [0, 1, 99, 147, 149, 150, vocabulary - 1, 70_000]
    assert found.having(asked) == there & {*asked} != {*asked}
    assert plain(found[-1]) == plain(wanted[-1][1])
    assert [plain(one) for one in found[3:40:5]] == [plain(e) for _, e in wanted[3:40:5]]
    assert found.rows[-2:] == [row for row, _ in wanted[-2:]]
    assert found[5].prompt == wanted[5][1].prompt
    for outside in (100, -101):
        with pytest.raises(IndexError):
            found[outside]


@pytest.mark.parametrize(("vocabulary", "size"), [(65_536, 2), (65_537, 4)])
def test_ids_are_views_of_the_smallest_type(tmp_path: Path, vocabulary: int, size: int) -> None:
    arrow.write(tmp_path / "a", kept(9), vocabulary, scored=False)
    ids = np.asarray(read(tmp_path / "a")[8].ids)
    assert ids.itemsize == size
    assert not ids.flags.owndata
    assert not ids.flags.writeable


def test_an_id_beyond_the_vocabulary_is_not_wrapped_around(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        arrow.write(tmp_path / "a", kept(3, 70_000), 500, scored=False)


def test_a_token_takes_no_more_than_six_bytes(tmp_path: Path) -> None:
    for vocabulary, most in ((500, 4), (100_000, 6)):
        rows = ((row(n), Example.of(range(15), (1, 2, 3))) for n in range(5000))
        arrow.write(tmp_path / "a", rows, vocabulary, scored=False)
        assert (tmp_path / "a").stat().st_size / (5000 * 18) < most


def test_a_file_that_is_cut_is_none(tmp_path: Path) -> None:
    arrow.write(tmp_path / "a", kept(50), 256, scored=False)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(pa.ArrowInvalid):
        read(tmp_path / "a")
    assert issubclass(pa.ArrowInvalid, ValueError)  # what the store makes anew
