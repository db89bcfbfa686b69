"""Every example makes its rows, is a right job, and runs: here on a tiny model, a few steps."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from cluster.session import Session
from orchestrator.config.job import load_job
from orchestrator.json_schema import job_schema
from tests.forked_workers import path_of
from workers.data.rows import training_rows, validation_rows

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/job.yaml"))
FILES = ("train.jsonl", "validation.jsonl", "test.jsonl")
Run = Callable[..., str]


def copied(example: Path, to: Path) -> Path:
    """A copy without the rows that somebody has made in it."""
    return shutil.copytree(example, to, ignore=shutil.ignore_patterns("*.jsonl", "runs"))


@pytest.fixture
def run(tmp_path: Path, processes: None) -> Run:
    """Runs a program of the environment in the folder `example`."""

    def there(*command: str) -> str:
        known = {name: one for name, one in os.environ.items() if not name.startswith("MOETUNE_")}
        done = subprocess.run(
            [str(Path(sys.executable).with_name(command[0])), *command[1:]],
            cwd=tmp_path / "example",
            env=known | {"PYTHONPATH": path_of(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return there


@pytest.fixture
def rows(tmp_path: Path, run: Run, request: pytest.FixtureRequest) -> dict[str, list[Any]]:
    """What the example's make_data.py writes into a copy of it."""
    folder = copied(request.getfixturevalue("example"), tmp_path / "example")
    run("python", "make_data.py")
    return {name: [*map(json.loads, (folder / name).read_text().splitlines())] for name in FILES}


each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)


@each
def test_its_job_is_right_for_editors(example: Path) -> None:
    values = yaml.safe_load((example / "job.yaml").read_text())
    Draft202012Validator(job_schema()).validate(values)
    assert load_job(example / "job.yaml").search_space().varied()


@each
def test_its_rows_are_made_alike_each_time_and_none_twice(
    example: Path, rows: dict[str, list[Any]], run: Run, tmp_path: Path
) -> None:
    before = [(tmp_path / "example" / name).read_bytes() for name in FILES]
    run("python", "make_data.py")
    assert [(tmp_path / "example" / name).read_bytes() for name in FILES] == before
    asked = {name: {json.dumps(row) for row in made} for name, made in rows.items()}
    assert not asked["train.jsonl"] & (asked["validation.jsonl"] | asked["test.jsonl"])
    assert not asked["validation.jsonl"] & asked["test.jsonl"]
    data = load_job(tmp_path / "example" / "job.yaml").train.data
    assert len(list(training_rows(data))) == len(rows["train.jsonl"])
    assert len(list(validation_rows(data))) == len(rows["validation.jsonl"])


@each
@pytest.mark.usefixtures("rows")
def test_it_is_checked_and_tuned(
    example: Path, run: Run, tiny_model_dir: Path, ray_cluster: Session
) -> None:
    job = ["job.yaml", f"--set=model.path={tiny_model_dir}", "--set=data.max_length=512"]
    checked = json.loads(run("moetune", "check", *job, "--json"))
    assert all(one["skipped"] == one["targets_cut"] == 0 for one in checked["data"].values())
    assert checked["remarks"] == []
    few = ["optimizer.steps=2", "optimizer.warmup_steps=0", "evaluation.every=1"]
    few += ["evaluation.rows_per_task=2", "search.trials=1", "search.metric=validation/loss"]
    few += ["search.mode=min", "evaluation.generate=false"]
    told = run(
        "moetune",
        "tune",
        *job,
        *(f"--set={one}" for one in few),
        f"--address={ray_cluster.address}",
        "--json",
    )
    [trial] = json.loads(told)
    assert (trial["state"], trial["steps"]) == ("finished", 2)
