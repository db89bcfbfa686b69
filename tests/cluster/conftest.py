"""Fixtures for tests of starting and joining clusters from other processes."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a path short enough for Ray's sockets; hides other clusters."""
    folder = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(short_tmp: Path, processes: None) -> Iterator[Start]:
    """Start Python code in another process that knows no cluster and no token of ours."""
    processes: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=clean | {"TMPDIR": str(short_tmp), "HOME": str(short_tmp)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def silent_address() -> Iterator[str]:
    """host:port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refused_address() -> str:
    """host:port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"
