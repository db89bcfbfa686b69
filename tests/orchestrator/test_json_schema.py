"""The JSON Schemas of jobs and policies agree with what reads these files."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

import orchestrator.jobs
from orchestrator.config.job import JobSpec, load_job
from orchestrator.json_schema import SCHEMAS, job_schema, policy_schema
from orchestrator.retraining.policy import Policy
from tests.yaml_of_editors import read
from workers.config.base import InputError, validated

JOBS = sorted(Path(orchestrator.jobs.__path__[0]).glob("*.yaml"))
LEAST = {
    "name": "x",
    "train": {"model": {"path": "m"}, "data": {"train": "t", "validation": "v"}},
}
POLICY = {"job": "job.yaml", "when": {"drift": {}}, "data": "fresh"}


@pytest.fixture(scope="module")
def job() -> Draft202012Validator:
    return Draft202012Validator(job_schema())


@pytest.fixture(scope="module")
def policy() -> Draft202012Validator:
    return Draft202012Validator(policy_schema())


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_is_a_schema_and_its_examples_are_right(name: str) -> None:
    schema = SCHEMAS[name]()
    Draft202012Validator.check_schema(schema)
    assert schema["title"].startswith("moetune ")
    for example in schema["examples"]:
        Draft202012Validator(schema).validate(example)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_that_comes_along_is_right(job: Draft202012Validator, path: Path) -> None:
    job.validate(read(path.read_text()))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_so_is_it_with_every_default_written_out(job: Draft202012Validator, path: Path) -> None:
    job.validate(json.loads(load_job(path).model_dump_json()))


def test_only_what_has_no_default_is_required(job: Draft202012Validator) -> None:
    job.validate(LEAST)
    assert job.schema["required"] == ["name", "train"]
    assert not job.is_valid({"name": "x"})


def with_line(base: dict[str, object], text: str) -> dict[str, object]:
    """The mapping with what `a.b: value` says."""
    values = json.loads(json.dumps(base))
    [(path, value)] = yaml.safe_load(text).items()
    *parents, leaf = path.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    place[leaf] = value
    return values


RIGHT = [
    "train.adapter.rank: 16",
    "train.adapter.num_experts: [2, 4]",
    "train.data.prompt_columns: question",
    "train.data.prompt_columns: [question, context]",
    "train.parallel.workers: {min: 1, max: 2}",
    "train.optimizer.max_grad_norm: null",
    "search.space: moe_lora",
    "search.space: {adapter.rank: {choice: [4, 8]}}",
    "serve.limits.rate: 60/min",
    "serve.cors_origins: https://app.example",
]
WRONG = [
    "train.adapter.rnk: 16",
    "train.adapter.rank: 0",
    "train.adapter.routing: best",
    "train.parallel.workers: {least: 1}",
    "train.optimizer.lr: -1",
    "train.optimizer.betas: [0.9]",
    "name: with a space",
    "search.mode: up",
    "serve.limits.rate: often",
    "serve.cors_origins: app.example",
    "serve.port: 70000",
    "trial: 3",
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_a_job_takes_is_right(job: Draft202012Validator, text: str) -> None:
    values = with_line(LEAST, text)
    validated(JobSpec, values, "test")
    job.validate(values)


@pytest.mark.parametrize("text", WRONG)
def test_what_a_job_refuses_is_wrong(job: Draft202012Validator, text: str) -> None:
    values = with_line(LEAST, text)
    with pytest.raises(InputError):
        validated(JobSpec, values, "test")
    assert not job.is_valid(values)


def test_a_space_inside_a_job_is_held_to_its_own_schema(job: Draft202012Validator) -> None:
    assert not job.is_valid(with_line(LEAST, "search.space: {adapter.rnk: {choice: [4, 8]}}"))


@pytest.mark.parametrize(
    "text", ["min_rows: 5", "set: {adapter.rank: 8}", "set: {train.adapter.rank: 8, name: y}"]
)
def test_what_a_policy_takes_is_right(policy: Draft202012Validator, text: str) -> None:
    values = with_line(POLICY, text)
    validated(Policy, values, "test")
    policy.validate(values)


@pytest.mark.parametrize("text", ["action: deploy", "set: {adapter.rnk: 8}", "every_minutes: 0"])
def test_what_a_policy_may_not_say_is_wrong(policy: Draft202012Validator, text: str) -> None:
    assert not policy.is_valid(with_line(POLICY, text))
