"""Completion by the shell's own protocol: what `moetune` answers to a TAB."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.registry.store import Store

ROOT = Path(__file__).resolve().parents[2]
MOETUNE = Path(sys.executable).with_name("moetune")
EVENT = {"revision": 1, "version": "v", "actor": "a", "reason": "r", "evidence": {}, "at": "t"}
JOBS = ["demo", "llama8b_cluster", "smoke"]


def offered(words: str, folder: Path, **environment: str) -> list[str]:
    """What bash is told for the words before the cursor."""
    cursor = len(words.split()) - (not words.endswith(" "))
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(cursor), "_MOETUNE_COMPLETE": "complete_bash"}
    ran = run([str(MOETUNE)], folder, **asked, **environment)
    assert ran.stderr == ""
    return ran.stdout.split()


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MOETUNE_")}
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=True
    )


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A folder with two studies."""
    folder = tmp_path / "runs"
    for study in ("support", "smart-home"):
        (folder / "studies" / study).mkdir(parents=True)
    return folder


@pytest.mark.usefixtures("processes")
def test_commands(tmp_path: Path) -> None:
    assert offered("moetune le", tmp_path) == ["leaderboard"]
    assert "export" in offered("moetune adapter ", tmp_path)


@pytest.mark.usefixtures("processes")
def test_jobs_that_come_along_and_files(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    for name in ("job.yaml", "notes.txt", "jobs/two.yml"):
        (tmp_path / name).touch()
    assert offered("moetune tune ", tmp_path) == [*JOBS, "job.yaml", "jobs/"]
    assert offered("moetune check sm", tmp_path) == ["smoke"]
    assert offered("moetune submit jobs/", tmp_path) == ["jobs/two.yml"]


@pytest.mark.usefixtures("processes")
def test_fields_of_a_job_and_of_an_endpoint(tmp_path: Path) -> None:
    assert "adapter.rank=" in offered("moetune tune smoke --set adapter.r", tmp_path)
    assert offered("moetune tune smoke --set search.tri", tmp_path) == ["search.trials="]
    assert offered("moetune serve home --set po", tmp_path) == ["port="]


@pytest.mark.usefixtures("processes")
def test_studies_of_the_storage_folder(storage: Path) -> None:
    assert offered("moetune report ", storage.parent) == ["smart-home", "support"]
    there = {"MOETUNE_STORAGE": str(storage)}
    assert offered("moetune leaderboard su", Path("/"), **there) == ["support"]
    assert offered(f"moetune status --storage {storage} sm", Path("/")) == ["smart-home"]


@pytest.mark.usefixtures("processes")
def test_names_of_its_store(storage: Path) -> None:
    store = Store(f"sqlite:///{storage / 'moetune.db'}")
    store.add_event(EVENT | {"name": "helpdesk", "action": "promote"})
    store.add_event(EVENT | {"name": "gone", "action": "delete"})
    assert offered("moetune serve ", storage.parent) == ["helpdesk"]
    assert offered("moetune promote s", storage.parent) == ["smart-home", "support"]
    assert offered("moetune promote support --to h", storage.parent) == ["helpdesk"]


@pytest.mark.usefixtures("processes")
def test_it_makes_nothing_and_says_nothing_where_nothing_is(tmp_path: Path) -> None:
    assert offered("moetune serve ", tmp_path) == []
    assert offered("moetune report ", tmp_path) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/moetune.db").write_bytes(b"no database")
    assert offered("moetune serve ", tmp_path) == []
    away = {"MOETUNE_STORE": "postgresql://nobody@127.0.0.1:1/none"}
    assert offered("moetune serve ", tmp_path, **away) == []
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["moetune.db"]


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_itself_with_the_script_that_moetune_gives(tmp_path: Path) -> None:
    path = f"{MOETUNE.parent}{os.pathsep}{os.environ['PATH']}"
    script = (
        'eval "$(_MOETUNE_COMPLETE=source_bash moetune)"; complete -p moetune >&2; '
        "COMP_WORDS=(moetune tune sm); COMP_CWORD=2; _moetune_completion moetune; "
        'echo "${COMPREPLY[@]}"'
    )
    ran = run(["bash", "--norc", "-c", script], tmp_path, PATH=path)
    assert "_moetune_completion moetune" in ran.stderr
    assert ran.stdout.split() == ["smoke"]
