"""Whether a JSON schema can be compiled within limits: tried out in another process, which can be
killed. A thread cannot, and what compiles has no limit of its own."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from workers.engine.request import SchemaLimits
from workers.engine.structured_output.grammar import Vocabulary

log = logging.getLogger(__name__)
PROGRAM = "workers.engine.structured_output.probe_process"
PATIENCE, AT_LEAST = 60, 30.0
"""So many times longer than its CPU time a schema may take by the clock, and so many seconds: the
machine is busy."""
GLANCE = 0.05
"""Seconds from one look at whether anybody waits to the next."""
KEPT = ("LD_LIBRARY_PATH", "PATH")
"""Of this process's environment; keys are none of the other's business."""


@dataclass(frozen=True)
class SchemaVerdict:
    """On one schema."""

    refused: str
    """Why it is; empty where nothing is wrong with it."""
    seconds: float
    """CPU time that it took."""
    bytes: int
    """Memory that it took."""
    settled: bool = True
    """Whether it would be the same another time; broken off it is not."""


class Probe:
    """The other process, started when it is first needed, and again when it has died."""

    def __init__(self, vocabulary: Vocabulary, limits: SchemaLimits) -> None:
        self._vocabulary, self._limits = vocabulary, limits
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def verdict(self, schema: str, gone: Callable[[], bool]) -> SchemaVerdict:
        """Try a schema out, unless who asks is `gone`. Blocks, and takes one at a time."""
        try:
            told = self._ask(schema, gone)
        except (EOFError, OSError) as error:
            log.warning("the process that tries schemas out died, and is replaced: %r", error)
            self.close()
            told = {"ended": "broken off", "seconds": 0.0}
        ended, limits = told["ended"], self._limits
        refused = {
            "": told.get("refused", ""),
            "time": f"the schema takes more than {limits.seconds:g} s of computing",
            "memory": f"the schema takes more than {limits.max_memory >> 20} MiB of memory",
            "broken off": "the schema could not be tried in time",
        }[ended]
        return SchemaVerdict(refused, told["seconds"], told.get("bytes", 0), ended != "broken off")

    def close(self) -> None:
        """End it."""
        if self._running is not None:
            process, connection = self._running
            self._running = None
            connection.close()
            process.kill()
            process.wait()

    def _ask(self, schema: str, gone: Callable[[], bool]) -> dict[str, Any]:
        _, connection = self._running = self._running or self._start()
        connection.send_bytes(schema.encode())
        while not connection.poll(GLANCE):
            if gone():
                connection.send_bytes(b"")
                break
        told: dict[str, Any] = json.loads(connection.recv_bytes())
        return told

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
            )
        known = {
            "columns": self._vocabulary.columns,
            "stops": self._vocabulary.stops,
            "seconds": self._limits.seconds,
            "bytes": self._limits.max_memory,
            "patience": max(PATIENCE * self._limits.seconds, AT_LEAST),
        }
        ours.send_bytes(json.dumps(known).encode())
        ours.send_bytes(self._vocabulary.tokenizer.encode())
        ours.recv_bytes()
        return process, ours


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
