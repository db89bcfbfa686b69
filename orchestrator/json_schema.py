"""The JSON Schemas of the files that people write, for their editors: jobs, spaces, policies."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from orchestrator.config.job import JobSpec
from orchestrator.retraining.policy import Policy
from search_spaces.json_schema import SPACE, space_definitions, space_schema
from search_spaces.parameters import presets
from workers.config.json_schema import Schema, fields, json_schema

_JOB: dict[str, Any] = {
    "name": "support",
    "train": {
        "model": {"path": "Qwen/Qwen2.5-0.5B-Instruct", "dtype": "bfloat16"},
        "data": {"train": "train.parquet", "validation": "validation.parquet"},
        "optimizer": {"steps": 500},
        "evaluation": {"every": 100},
    },
    "search": {"space": "moe_lora", "trials": 16},
}
_POLICY: dict[str, Any] = {
    "job": "job.yaml",
    "set": {"search.trials": 8},
    "when": {"drift": {"windows": 3}},
    "data": "fresh/*.jsonl",
}


def job_schema() -> Schema:
    """Of a job file."""
    schema = json_schema(JobSpec)
    defs = schema["$defs"]
    name = {"type": "string", "examples": [*presets()]}
    space = defs["SearchSpec"]["properties"]["space"]
    space["anyOf"] = [name, {"$ref": f"#/$defs/{SPACE}"}, {"type": "null"}]
    return {**schema, "title": "moetune job", "$defs": {**defs, **space_definitions()}} | {
        "examples": [_JOB]
    }


def policy_schema() -> Schema:
    """Of a policy file."""
    job, schema = job_schema(), json_schema(Policy)
    known = {path: one.schema for one in fields(job) for path in _names(one.path)}
    schema["properties"]["set"] |= {"properties": known, "additionalProperties": False}
    defs = {**job["$defs"], **schema["$defs"]}
    return {**schema, "title": "moetune policy", "$defs": defs, "examples": [_POLICY]}


SCHEMAS: Mapping[str, Callable[[], Schema]] = MappingProxyType(
    {"job": job_schema, "space": space_schema, "policy": policy_schema}
)
"""By the file that each is of."""


def _names(path: str) -> tuple[str, ...]:
    """How `--set` takes a field: `adapter.rank` is short for `train.adapter.rank`."""
    head, _, rest = path.partition(".")
    return (path, rest) if head == "train" and rest else (path,)
