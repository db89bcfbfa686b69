"""Rows with their answers, for people: which rows, how much of them, and reading them again."""

from dataclasses import replace
from pathlib import Path

import pytest

from workers.data.rows import Row
from workers.run.samples import (
    Sample,
    SampledAnswer,
    read_samples,
    sample,
    sample_rows,
    write_samples,
)

ROW = Row(
    messages=({"role": "user", "content": "on or off?"},),
    target="on",
    task="call",
    metric="rouge_l",
    answer="on",
    references=("on",),
    choices=(),
    answer_index=-1,
)


def rows(*tasks: str) -> list[Row]:
    return [replace(ROW, task=task) for task in tasks]


@pytest.mark.parametrize(
    ("tasks", "count", "expected"),
    [
        ("aaabb", 3, {0, 3, 1}),
        ("abc", 2, {0, 1}),
        ("aaaa", 2, {0, 1}),
        ("ab", 6, {0, 1}),
        ("ab", 0, set()),
        ("", 3, set()),
    ],
)
def test_every_task_has_its_turn(tasks: str, count: int, expected: set[int]) -> None:
    assert sample_rows(rows(*tasks), count) == expected


def test_what_is_written_is_read_and_long_texts_keep_both_ends(tmp_path: Path) -> None:
    book = "begin " + "x" * 100_000 + " end?"
    long = replace(ROW, messages=({"role": "user", "content": book},))
    samples = [
        sample(ROW, SampledAnswer("été <b>", 0.25)),
        sample(long, SampledAnswer("y" * 5000, 0.0)),
    ]
    path = tmp_path / "samples.json"
    write_samples(path, samples)
    assert read_samples(path) == samples
    assert samples[0] == Sample(
        task="call", metric="rouge_l", question="on or off?", expected="on", answer="été <b>",
        score=0.25, whole=True,
    )  # fmt: skip
    assert samples[1].question.startswith("begin x")
    assert samples[1].question.endswith("x end?")
    assert path.stat().st_size < 4000


@pytest.mark.parametrize("text", [None, "", "[", "{}", "3", '[{"task": 1}]', '["a"]', "[[]]"])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "samples.json"
    if text is not None:
        path.write_text(text)
    assert read_samples(path) == []


def test_nothing_to_show_leaves_no_file(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.json", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("contents", "whole"), [(["on?"], True), (["be short", "on?"], False), (["x" * 601], False)]
)
def test_only_a_whole_prompt_of_one_turn_can_be_asked_again(
    contents: list[str], whole: bool
) -> None:
    turns = tuple({"role": "user", "content": content} for content in contents)
    assert sample(replace(ROW, messages=turns), SampledAnswer("", 0.0)).whole == whole
