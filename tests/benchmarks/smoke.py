"""Benchmarks as tests run them: at sizes that show that they run."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ran(script: str, options: Sequence[str], folder: Path) -> tuple[dict[str, Any], str]:
    """A script's figures, which stand in its last line as in its --json, and all that it prints.
    It runs in `folder`."""
    path = folder / "figures.json"
    command = [sys.executable, str(Path(__file__).with_name(script)), *options, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(path.read_text()) == figures
    return figures, done.stdout


def options_of(sizes: dict[str, int]) -> list[str]:
    """--NAME NUMBER of each."""
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
