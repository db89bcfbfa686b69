"""A case of no tier starts no process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = """
import os, subprocess, sys, pytest

def start():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.fixture
def processes(): ...

@pytest.fixture
def server(processes):
    start()

@pytest.fixture
def hidden():
    start()

def test_that_says_so(processes): start()
def test_of_a_fixture_that_says_so(server): ...
def test_that_does_not(): start()
def test_of_a_fixture_that_does_not(hidden): ...
def test_that_forks():
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        os._exit(0)
def test_that_hides_it():
    try:
        start()
    except BaseException:
        pass
def test_of_nothing(): ...
"""


def run(folder: Path, *options: str) -> str:
    (folder / "test_some.py").write_text(CASES)
    command = [sys.executable, "-m", "pytest", "-p", "tests.tiers", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-q", "-rA", "-W", "ignore", *options, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.stdout


@pytest.mark.usefixtures("processes")
def test_what_starts_a_process_unsaid_fails(tmp_path: Path) -> None:
    said = run(tmp_path, f"--rootdir={tmp_path}")
    passed = {line.split("::")[1] for line in said.splitlines() if line.startswith("PASSED")}
    assert passed == {"test_that_says_so", "test_of_a_fixture_that_says_so", "test_of_nothing"}, (
        said
    )
    assert "test_that_hides_it starts a process and takes no fixture that says so" in said


@pytest.mark.usefixtures("processes")
def test_tiers_can_be_left_out(tmp_path: Path) -> None:
    said = run(tmp_path, f"--rootdir={tmp_path}", "-m", "process", "-q")
    assert said.count("PASSED") == 2
    assert "FAILED" not in said
