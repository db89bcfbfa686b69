"""The product as a user meets it: the command line in a folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with rows and a job file of two short trials on the tiny model."""
    folder = tmp_path_factory.mktemp("workspace")
    colours = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
    rows = [
        {"prompt": f"{ask} {thing}?", "target": colour, "task": task}
        for thing, colour in colours.items()
        for task, ask in (("colour", "colour of"), ("hue", "what hue has"))
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text * 4)
    (folder / "validation.jsonl").write_text(text)
    job = {
        "name": "colours",
        "train": {
            "model": {"path": str(tiny_model_dir)},
            "adapter": {"num_experts": 4, "top_k": 2, "rank": 4, "alpha": 8},
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "max_length": 96},
            "optimizer": {"lr": 5e-3, "steps": 6, "batch_size": 8},
            "evaluation": {"every": 3, "max_new_tokens": 8},
        },
        "search": {"space": "smoke", "trials": 2},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


@pytest.fixture(scope="session")
def user_environment(forks: None) -> dict[str, str]:
    """The user's environment without what would lead to another cluster or storage, and with a
    proxy that nothing on this machine may be sent to."""
    ours = ("RAY_", "MOETUNE_", "NO_PROXY", "no_proxy")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return theirs | dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def moetune(workspace: Path, user_environment: dict[str, str], processes: None) -> Run:
    """Runs the command in the workspace: `moetune("tune", "job.yaml")`."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=workspace,
            env=user_environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def read(moetune: Run) -> Callable[..., Any]:
    """Runs a reading command with --json and parses what it prints."""

    def run(*arguments: str) -> Any:
        return json.loads(moetune(*arguments, "--json").stdout)

    return run


@pytest.fixture(scope="module")
def trials(read: Callable[..., Any]) -> list[dict[str, Any]]:
    """The leaderboard of the workspace's study, tuned on a local cluster of its own."""
    rows: list[dict[str, Any]] = read("tune", "job.yaml")
    return rows
