"""What pyproject.toml and constraints.txt ask for goes together, on an ordinary machine.

A local CPU build of torch requires other packages than the index's own, and hides a conflict.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES_ONLY = ("deepspeed", "rouge-score")
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


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_everything_installs_beside_the_index_own_torch(index_torch: Path, version: str) -> None:
    done = resolve(index_torch, version)
    assert done.returncode == 0, done.stderr
    assert "\ntriton==" in done.stdout, "torch brings its own"


@pytest.mark.slow
def test_a_conflict_is_found(index_torch: Path) -> None:
    index_torch.write_text(index_torch.read_text() + "triton==3.9.0\n")
    done = resolve(index_torch, "3.11")
    assert done.returncode == NO_SOLUTION
    assert "triton" in done.stderr
