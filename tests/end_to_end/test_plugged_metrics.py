"""The package that docs/extending.md shows, installed, named by a job and searched by."""

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, Page
from tests.end_to_end.conftest import Run
from tests.packages import install

METRIC = "validation/tasks/colour/value"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    page = Page(ROOT / "docs" / "extending.md")
    (pyproject,) = page.blocks("toml")
    module = next(one for one in page.blocks("python") if "commonprefix" in one.text)
    (name,) = tomllib.loads(pyproject.text)["tool"]["setuptools"]["py-modules"]
    return install(tmp_path_factory.mktemp("site"), pyproject.text, {name: module.text})


@pytest.fixture(scope="module")
def user_environment(package: Path, forks: None) -> dict[str, str]:
    """Of a user who has installed it."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return theirs | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{package}"}


def shared(one: str, other: str) -> int:
    """Characters that both begin with."""
    most = min(len(one), len(other))
    return next(length for length in range(most, -1, -1) if one[:length] == other[:length])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_searches_by_it(
    workers: int, moetune: Run, read: Callable[..., Any], workspace: Path
) -> None:
    """In the actor of a trial, and in a group of workers."""
    name = f"of-{workers}"
    changes = {
        "name": name,
        "data.metrics": "{colour: opening}",
        "search.metric": METRIC,
        "search.mode": "max",
        "search.trials": "1",
        "parallel.workers": str(workers),
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    (row,) = read("tune", "job.yaml", *sets)
    assert row["state"] == "finished"
    (trial,) = (workspace / "runs" / "studies" / name / "trials").iterdir()
    answers = json.loads((trial / "samples.json").read_text())
    of_task = [one for one in answers if one["task"] == "colour"]
    assert of_task
    for one in of_task:
        assert one["score"] == shared(one["answer"], one["expected"]) / len(one["expected"])
    last = json.loads((trial / "progress.jsonl").read_text().splitlines()[-1])
    task = last["validation"]["tasks"]["colour"]
    assert (task["metric"], task["value"]) == ("opening", row["value"])


def test_who_lacks_it_hears_so_before_a_cluster_starts(workspace: Path, moetune: Run) -> None:
    done = moetune("check", "job.yaml", "--set", "data.metrics={colour: closing}", code=2)
    assert "data.metrics.colour: unknown metric 'closing'; known are acc, acc_norm" in done.stderr
    assert done.stderr.count("\n") == 1
