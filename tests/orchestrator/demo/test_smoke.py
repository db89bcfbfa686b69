"""The job `smoke` as it comes along: by one command, in an empty folder, without a network."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.commands.options import study_job


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_its_files_are_made_where_the_storage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = study_job("smoke", [], {"storage": None})
    assert job.train.model.path == "runs/smoke/tiny-llama"
    assert job.train.data.train == "runs/smoke/train.jsonl"
    study_job("smoke", [], {"storage": "elsewhere"})
    made = _digests(tmp_path / "runs" / "smoke")
    assert made == _digests(tmp_path / "elsewhere" / "smoke"), "the same bytes each time"
    assert {"train.jsonl", "validation.jsonl", "tiny-llama/model.safetensors"} <= made.keys()


def test_what_is_named_instead_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").touch()
    own = [f"data.{name}=own.jsonl" for name in ("train", "validation")]
    job = study_job("smoke", own, {})
    assert (job.train.data.train, job.train.data.validation) == ("own.jsonl", "own.jsonl")
    assert job.train.model.path == "runs/smoke/tiny-llama"
    study_job("smoke", [*own, "model.path=org/model", "cluster.storage=none"], {})
    assert not (tmp_path / "none").exists(), "nothing of ours is needed"


def test_a_users_file_of_that_name_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = {"name": "own", "train": {"model": {"path": "base"}}}
    job["train"] |= {"data": {"train": "smoke/train.jsonl", "validation": "own.jsonl"}}
    (tmp_path / "smoke").write_text(json.dumps(job))
    assert study_job("smoke", [], {}).train.data.train == "smoke/train.jsonl"
    assert [path.name for path in tmp_path.iterdir()] == ["smoke"]


@pytest.mark.usefixtures("processes")
def test_one_command_runs_it(tmp_path: Path) -> None:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "tune", "smoke", "--json"],
        cwd=tmp_path,
        env=outer | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)
    assert [trial["state"] for trial in trials] == ["finished"] * 2
