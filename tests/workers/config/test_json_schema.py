"""Specifications as JSON Schema: what pydantic's own leaves out or says twice."""

import json
from typing import Annotated

import pytest
from jsonschema import Draft202012Validator, ValidationError
from pydantic import Field

from workers.config.base import Listed, Spec
from workers.config.json_schema import fields, json_schema

Name = Annotated[str, Field(pattern="^[a-z]+$")]


class Inner(Spec):
    """A section."""

    depth: int = 3
    """How deep,
    in steps."""


class Outer(Spec):
    """The whole."""

    path: str
    """Where it is."""
    inner: Inner = Inner()
    either: int | Inner = 1
    """A number, or the
    section."""
    names: Listed[Name] = ()
    """Names."""


def test_descriptions_are_the_docstrings_in_one_line() -> None:
    told = {one.path: one.schema.get("description") for one in fields(json_schema(Outer))}
    assert told["path"] == "Where it is."
    assert told["inner.depth"] == "How deep, in steps."
    assert told["either"] == "A number, or the section."


def test_fields_lists_sections_and_what_is_in_them() -> None:
    listed = [*fields(json_schema(Outer))]
    assert [one.path for one in listed] == [
        "path",
        "inner",
        "inner.depth",
        "either",
        "either.depth",
        "names",
    ]
    assert [one.path for one in listed if one.required] == ["path"]
    assert [one.path for one in listed if one.section] == ["inner", "either"]


def test_no_title_repeats_a_field_and_no_default_a_section() -> None:
    text = json.dumps(json_schema(Outer))
    assert '"Path"' not in text
    assert '"default": {' not in text
    assert '"default": 3' in text


@pytest.mark.parametrize("names", ["a", ["a"], ["a", "b"], []])
def test_a_text_stands_for_a_list_of_one_in_both(names: object) -> None:
    values = {"path": "x", "names": names}
    Draft202012Validator(json_schema(Outer)).validate(values)
    assert Outer.model_validate(values).names == tuple([names] if names == "a" else names)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", ["A", ["a", "B"], 3])
def test_its_items_are_held_to_their_own_rules_in_both(names: object) -> None:
    values = {"path": "x", "names": names}
    with pytest.raises(ValidationError):
        Draft202012Validator(json_schema(Outer)).validate(values)
    with pytest.raises(ValueError, match="names"):
        Outer.model_validate(values)
