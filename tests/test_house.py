"""What comes with the code: types for who imports it, and hooks that run out of .venv alone."""

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
