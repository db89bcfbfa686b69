"""One source or several: how they are written, and what is refused."""

from typing import Any

import pytest

from workers.config.base import InputError, override, validated
from workers.config.data import DataSpec
from workers.config.sources import SourceSpec


def data(train: Any) -> DataSpec:
    return validated(DataSpec, {"train": train, "validation": "v.jsonl"}, "job.yaml")


def test_one_source_is_a_list_of_one_and_is_written_as_it_was() -> None:
    spec = data("t.jsonl")
    assert spec.sources == (SourceSpec(source="t.jsonl"),)
    assert spec.train_name == spec.model_dump(mode="json")["train"] == "t.jsonl"


def test_a_list_holds_texts_and_sources_with_weights() -> None:
    spec = data(["a.jsonl", {"source": "hub:b#test", "weight": 0.5, "task": "quiz"}])
    assert spec.train_name == "a.jsonl, hub:b#test"
    assert [(one.weight, one.task) for one in spec.sources] == [(1, None), (0.5, "quiz")]
    assert validated(DataSpec, spec.model_dump(mode="json"), "again") == spec
    assert override(spec, {"train": "c.jsonl"}, "--set").train == "c.jsonl"
    assert hash(spec) == hash(spec.model_copy())


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([], "train: must be a source, or a list of sources, each a text or {source, weight, task"),
        (3, "train: must be a source, or a list of sources"),
        ({"source": "a"}, "train: must be a source, or a list of sources"),
        ([3], "train.0: must be a text or {source, weight, task}; it is 3"),
        (["a", {"source": "b", "wight": 2}], "train.1.wight: no such field; did you mean weight?"),
        ([{"weight": 2}], "train.0.source: Field required"),
        ([{"source": "b", "weight": 0}], "train.0.weight: Input should be greater than 0, not 0"),
        ([{"source": "b", "weight": 1e9}], "train.0.weight: Input should be less than or equal to"),
        ([{"source": "b", "task": ""}], "train.0.task: String should have at least 1 character"),
        (["s3://me:secret@bucket/x"], "train.0.source: holds a password or key"),
        ([{"source": "s3://me:secret@bucket/x"}], "train.0.source: holds a password or key"),
    ],
)
def test_what_is_wrong_is_one_line(train: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        data(train)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


SECRET = "s3://me:secret@bucket/x"


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"source": SECRET, "weight": 2}},
        {"train": {SECRET: 2}},
        {"train": [[SECRET]]},
        {"train": [{"source": [SECRET]}]},
        {"train": [{SECRET: 2}]},
        {"train": ["a", {"source": "b", "weight": SECRET}]},
        {"validation": [SECRET]},
        {"validation": {"share": SECRET}},
        {"validation": {"share": [{"a": ("b", SECRET)}]}},
        {"prompt_columns": [[SECRET]]},
    ],
)
def test_what_stands_in_the_wrong_place_is_said_without_its_password(
    values: dict[str, Any],
) -> None:
    with pytest.raises(InputError, match="job: ") as caught:
        validated(DataSpec, {"train": "t", "validation": "v", **values}, "job")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        (3, "validation: must be a source, or {share: 0.1}; it is 3"),
        (["a"], "validation: must be a source, or {share: 0.1}; it is ['a']"),
        ({"shar": 0.1}, "validation.shar: no such field; did you mean share?"),
        ({}, "validation.share: Field required"),
        ({"share": 0}, "validation.share: Input should be greater than 0, not 0"),
        ({"share": 1}, "validation.share: Input should be less than 1, not 1"),
    ],
)
def test_what_is_wrong_with_a_split_is_one_line(validation: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        override(data("a"), {"validation": validation}, "job")
    assert str(caught.value) == f"job: {said}"


def test_a_share_takes_the_place_of_a_source_and_back() -> None:
    held_out = override(data(["a", "b"]), {"validation.share": 0.2}, "--set")
    assert held_out.held_out == 0.2
    assert held_out.compared_on == held_out.sources
    assert held_out.validation_name == "a share of 0.2 of a, b"
    assert hash(held_out) == hash(override(held_out, {}, "--set"))
    assert override(held_out, {"validation.share": 0.3}, "--set").held_out == 0.3
    apart = override(held_out, {"validation": "v"}, "--set")
    assert (apart.held_out, apart.validation_name) == (0, "v")
    assert [one.source for one in apart.compared_on] == ["v"]
