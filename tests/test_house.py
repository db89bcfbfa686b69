"""What comes with the code: types for who imports it, and hooks that run out of .venv alone."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from cluster.staging import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
HOOKS = ROOT / ".pre-commit-config.yaml"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed_and_ships_that(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert (ROOT / package / "py.typed").read_text() == ""
    assert "py.typed" in project["tool"]["setuptools"]["package-data"][package]


def test_hooks_download_nothing() -> None:
    repositories = yaml.safe_load(HOOKS.read_text())["repos"]
    assert {one["repo"] for one in repositories} == {"local"}
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


@pytest.fixture
def repository(tmp_path: Path, processes: None) -> Path:
    """A repository with our configuration, and the environment of these tests as its .venv."""
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for name in (HOOKS.name, "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "workers").mkdir()
    return tmp_path


def commit(repository: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run the hooks on a new file, as `git commit` would."""
    (repository / "workers" / "new.py").write_text(text)
    subprocess.run(["git", "add", "workers"], cwd=repository, check=True)
    away = {"SKIP": "docs", "PRE_COMMIT_HOME": str(repository / "cache"), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--files", "workers/new.py"],
        cwd=repository,
        env=os.environ | away,
        capture_output=True,
        text=True,
        check=False,
    )


def test_hooks_take_what_is_right_and_refuse_what_is_not(repository: Path) -> None:
    good = commit(repository, '"""One."""\n\nONE: int = 1\n')
    assert good.returncode == 0, good.stdout + good.stderr
    wrong_type = commit(repository, '"""One."""\n\nONE: int = "1"\n')
    assert wrong_type.returncode == 1
    assert "Incompatible types in assignment" in wrong_type.stdout
    untidy = commit(repository, '"""One."""\nimport os\nONE: int=1\n')
    assert untidy.returncode == 1
    assert (repository / "workers" / "new.py").read_text() == '"""One."""\n\nONE: int = 1\n'
