"""Writers that are killed."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

KILLS = [0.0, 0.001, 0.003, 0.007, 0.011, 0.017, 0.023, 0.031]
"""Seconds after a writer's first write: no two are at the same place of its work."""
Kill = Callable[[str, Path, float], None]


@pytest.fixture
def kill(processes: None) -> Kill:
    """`kill(code, path, seconds)`: Python code that writes to `path`, and says so with a line on
    its output, is killed so many seconds after that."""

    def begun_and_killed(code: str, path: Path, seconds: float) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
        )
        with process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "writes\n"
                time.sleep(seconds)
                assert process.poll() is None, "it writes until it is killed"
            finally:
                process.kill()

    return begun_and_killed
