"""Workers of the tests' cluster, and the commands and scripts that tests start, are forked from one
process, which has imported for all of them.

Importing torch and transformers takes each five seconds of a core, and each actor of Ray is a
process of its own. What a submitted job starts is forked too, and imports moetune from the folder
that the cluster has unpacked for it.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

SERVER = "tests.forked_workers.server"
FORK_AT, SCRIPTS, WORKERS_TOO = "TESTS_FORK_AT", "TESTS_FORK_SCRIPTS", "TESTS_FORK_WORKERS"
"""Variables that the hook reads: where the server listens, the folder of the scripts that fork, and
whether Ray's workers fork too, of the tests' cluster and of those that commands start."""
HOOK = Path(__file__).parent / "hook"
"""On the path of a cluster's processes: Python runs its sitecustomize.py as they start."""


@contextmanager
def forked_workers() -> Iterator[None]:
    """What is started in here forks for as long as this lasts: the workers of a local cluster,
    `python -m orchestrator.cli`, and the benchmarks."""
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:
        path = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(64)
            server = _server(listener)
        try:
            with pytest.MonkeyPatch.context() as changed:
                changed.setenv(FORK_AT, path)
                changed.setenv(SCRIPTS, f"{Path(__file__).parents[1]}/benchmarks/")
                changed.setenv(WORKERS_TOO, "yes")
                changed.setenv("PYTHONPATH", str(HOOK), prepend=os.pathsep)
                yield
        finally:
            with server:  # it ends with its standard input
                pass


def unforked(environment: Mapping[str, str]) -> dict[str, str]:
    """For a process whose children are looked at: they are its own, and no forks of the server."""
    return {
        name: value for name, value in environment.items() if name not in (FORK_AT, WORKERS_TOO)
    }


def path_of(folder: Path) -> str:
    """PYTHONPATH of what forks, and imports moetune from a folder."""
    return os.pathsep.join((str(HOOK), str(folder)))


def forks_of(process: psutil.Process) -> list[psutil.Process]:
    """The workers that live of the cluster that a process has started in `forked_workers`. What
    they show of their environment is that of who has forked them."""
    return [
        fork
        for child in process.children()
        if SERVER in child.cmdline()
        for fork in child.children(recursive=True)
    ]


def _server(listener: socket.socket) -> subprocess.Popen[bytes]:
    number = listener.fileno()
    return subprocess.Popen(
        [sys.executable, "-m", SERVER, str(number)],
        stdin=subprocess.PIPE,
        pass_fds=[number],
        start_new_session=True,  # Ctrl-C is for pytest, which stops it in order
    )
