"""The JSON Schema of a search space agrees with what reads one."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from search_spaces.json_schema import space_schema
from search_spaces.parameters import presets, read_parameter
from search_spaces.space import SearchSpace
from tests.yaml_of_editors import read
from workers.config.base import InputError
from workers.config.train import TrainSpec

TRAIN = TrainSpec.model_validate(
    {"model": {"path": "m"}, "data": {"train": "t", "validation": "v"}}
)


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    made = space_schema()
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_right(schema: Draft202012Validator, name: str) -> None:
    schema.validate(read(presets()[name].read_text()))


def test_its_example_is_a_space(schema: Draft202012Validator) -> None:
    [example] = space_schema()["examples"]
    schema.validate(example)
    assert SearchSpace.resolve(example, TRAIN).varied()


RIGHT = [
    "adapter.rank: 8",
    "adapter.rank: {choice: [4, 8]}",
    "adapter.rank: {int: [4, 16], step: 4}",
    "adapter.num_experts: {choice: [2, [2, 4]]}",
    "adapter.target_modules: {choice: [all-linear, [q_proj, v_proj]]}",
    "optimizer.lr: {log: [0.0001, 0.001]}",
    "optimizer.lr: {float: [0.0001, 0.001], when: {adapter.num_experts: {above: 1}}}",
    "optimizer.lr: {choice: [0.1], when: {adapter.rank: {in: [2, 4]}, adapter.routing: top_p}}",
    "adapter.top_k: {int: [1, 2], below: adapter.num_experts}",
    "data.train: {choice: [a.jsonl, b.jsonl]}",
    "data.max_rows: 10",
    "seed: {int: [0, 3]}",
]
WRONG = [
    "adapter.rnk: 8",
    "adapter.rank: 0",
    "adapter.rank: {choice: []}",
    "adapter.rank: {int: [4]}",
    "adapter.rank: {among: [4, 8]}",
    "adapter.rank: {choice: [4], int: [4, 8]}",
    "adapter.rank: {choice: [4], step: 2}",
    "adapter.rank: {choice: [4, many]}",
    "adapter.rank: {int: [1, 2], below: adapter.num_experts}",
    "optimizer.lr: {log: [0, 0.1]}",
    "optimizer.lr: {float: [0.1, 0.2], when: {adapter.rank: {over: 1}}}",
    "optimizer.lr: {float: [0.1, 0.2], when: {adapter.rnk: 4}}",
    "model.path: other",
    "parallel.workers: 2",
    "{}",
]


def is_taken(space: Mapping[str, Any]) -> bool:
    try:
        for path, entry in space.items():
            read_parameter(path, entry, "test")
        SearchSpace.resolve(space, TRAIN)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("text", RIGHT)
def test_what_a_study_takes_is_right(schema: Draft202012Validator, text: str) -> None:
    assert is_taken(yaml.safe_load(text))
    schema.validate(read(text))


@pytest.mark.parametrize("text", WRONG)
def test_what_a_study_refuses_is_wrong(schema: Draft202012Validator, text: str) -> None:
    assert not is_taken(yaml.safe_load(text))
    assert not schema.is_valid(read(text))
