"""`moetune serve` in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(
    *words: str, env: Mapping[str, str], cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`moetune serve` with these words, on a free port, and its URL; killed at the end."""
    server = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "serve", *words, "--set", "port=0"],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, f"serve said {line!r}, {server.communicate(timeout=60)}"
        yield server, found[0]
    finally:
        server.kill()
        server.communicate()
