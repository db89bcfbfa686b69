"""What pyproject.toml and constraints.txt ask for goes together, on an ordinary machine.

A local CPU build of torch requires other packages than the index's own, and hides a conflict.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cluster.staging import PACKAGES
from workers.config.extras import installing

ROOT = Path(__file__).parents[1]
SOURCES_ONLY = ("deepspeed", "rouge-score", "sqlitedict", "word2number")
"""Packages without a wheel: pure Python, built where they are installed."""
NO_SOLUTION = 1
"""How uv ends where requirements conflict; it ends with 2 where no index answers."""


def resolve(constraints: Path, version: str) -> subprocess.CompletedProcess[str]:
    """Resolve everything with every extra, from the index's wheels alone."""
    sources = [word for name in SOURCES_ONLY for word in ("--no-binary", name)]
    command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml")]
    command += ["--quiet", "--native-tls", "--all-extras", "--constraints", str(constraints)]
    command += ["--python-version", version, "--only-binary", ":all:", *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    if done.returncode not in (0, NO_SOLUTION):
        pytest.skip(f"no package index answers: {done.stderr.strip()[:200]}")
    return done


@pytest.fixture
def index_torch(tmp_path: Path) -> Path:
    """Our constraints with the index's own torch, which three = ask for."""
    pins = (ROOT / "constraints.txt").read_text()
    path = tmp_path / "constraints.txt"
    path.write_text(pins.replace("\ntorch==", "\ntorch==="))
    assert "torch===" in path.read_text()
    return path


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_everything_installs_beside_the_index_own_torch(index_torch: Path, version: str) -> None:
    done = resolve(index_torch, version)
    assert done.returncode == 0, done.stderr
    assert "\ntriton==" in done.stdout, "torch brings its own"


@pytest.mark.usefixtures("processes")
def test_a_conflict_is_found(index_torch: Path) -> None:
    index_torch.write_text(index_torch.read_text() + "triton==3.9.0\n")
    done = resolve(index_torch, "3.11")
    assert done.returncode == NO_SOLUTION
    assert "triton" in done.stderr


def test_extras_are_named_as_they_can_be_had() -> None:
    """From a clone: `pip install moetune[…]` asks an index that knows no moetune."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    code = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    asked: set[str] = set()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *code):
        text = path.read_text()
        assert "moetune[" not in text, path
        asked |= {
            *re.findall(r"installing\(.([\w-]+).\)", text),
            *re.findall(r"-e '\.\[([\w-]+)\]", text),
        }
    assert asked >= {"gpu", "quantized", "postgres", "demo", "lm-eval"}
    assert asked <= extras.keys()
    assert "pip install -c constraints.txt -e '.[gpu]'" in installing("gpu")
    assert (ROOT / "constraints.txt").is_file()
