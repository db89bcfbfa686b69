"""A process of one thread that has imported what takes each worker of Ray, each `moetune` and each
benchmark five seconds to import, and forks.

    python -m tests.forked_workers.server LISTENER

Only packages are imported, none of moetune: a fork imports moetune from where it is told.
"""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "aiohttp",
    "fastapi",
    "google.protobuf.descriptor_pb2",
    "jsonschema",
    "numpy",
    "optuna",
    "pandas",
    "pyarrow",
    "pyarrow.dataset",
    "pyarrow.fs",
    "rich.console",
    "safetensors.torch",
    "sympy",
    "torch.distributed",
    "torch.utils.data",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "uvicorn",
)
"""Not Ray itself: its core reads the worker's variables where it is imported."""
READ_EARLY = ("HF_", "MKL_", "OMP_", "PYTHON", "TORCH_", "TRANSFORMERS_")
"""Beginnings of variables that Python and these packages read once, as they start."""
READ_LATE = ("PYTHONBREAKPOINT", "PYTHONPATH")
"""Those that a fork can be given: Ray sets the first in whoever connects to a cluster."""


class Forked(BaseException):
    """Raised in the fork, to leave the server's loop: what was asked for, and its files."""


class Server:
    """Forks for whoever connects, and tells each how the fork has ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Until the standard input is closed. Raises Forked in a fork."""
        self._selector.register(sys.stdin, selectors.EVENT_READ, lambda _: sys.exit())
        self._selector.register(self._listener, selectors.EVENT_READ, self._fork)
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _fork(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        asked, files = received(client)
        if not same_start(asked):
            client.close()  # it starts by itself
            for one in files:
                os.close(one)
            return
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            client.close()
            listener.close()
            raise Forked(asked, files)
        for one in files:
            os.close(one)
        Standing(self._selector, client, pid)


class Standing:
    """A fork and the process that stands for it: the end of one is told to the other, and the
    signals of who stands for it to the fork."""

    def __init__(self, selector: selectors.BaseSelector, client: socket.socket, pid: int) -> None:
        self._selector, self._client, self._pid = selector, client, pid
        self._child, self._lives = os.pidfd_open(pid), True
        selector.register(client, selectors.EVENT_READ, self._told)
        selector.register(self._child, selectors.EVENT_READ, self._ended)

    def _told(self, _: object) -> None:
        if not self._lives:  # both ends came in one look
            return
        if signals := self._client.recv(64):
            for number in signals:
                os.kill(self._pid, number)
            return
        self._selector.unregister(self._client)
        os.kill(self._pid, signal.SIGKILL)

    def _ended(self, _: object) -> None:
        self._lives = False
        self._selector.unregister(self._child)
        os.close(self._child)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if self._client in self._selector.get_map():
            self._selector.unregister(self._client)
            with suppress(OSError):  # it is gone
                self._client.send(bytes([code if code >= 0 else 128 - code]))
        self._client.close()


def received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and the three standard files of who asks."""
    length, files, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as rest:
        return json.loads(rest.read(int.from_bytes(length, "big"))), files


def same_start(asked: dict[str, Any]) -> bool:
    """Whether what is asked for would start as this process has: by this Python, which has several
    names in an environment, and, for a command, with these variables."""
    if asked["python"] != [os.path.realpath(sys.executable), sys.prefix]:
        return False
    return "signals" not in asked or read_early(asked["environment"]) == read_early(os.environ)


def read_early(environment: Mapping[str, str]) -> dict[str, str]:
    """What a fork cannot be given: it was read before."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_EARLY) and name not in READ_LATE
    }


def become(asked: dict[str, Any], files: list[int]) -> None:
    """Be the process that was asked for."""
    import numpy

    for number, one in enumerate(files):
        os.dup2(one, number)
        os.close(one)
    os.setsid()
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    numpy.random.seed()
    random.seed()
    sys.argv[:] = asked["argv"]
    if module := asked.get("module"):
        sys.path[:] = [asked["folder"], *asked["path"]]
        run = partial(runpy.run_module, module, alter_sys=True)
    else:
        script = asked["argv"][0]
        sys.path[:] = [str(Path(script).absolute().parent), *asked["path"]]
        run = partial(runpy.run_path, script)
    if "signals" in asked:
        end(run)
    else:
        run(run_name="__main__")


def end(command: Callable[..., object]) -> NoReturn:
    """Run a command and end as Python does, but for its last look at all objects: what a command
    that has not imported torch leaves, torch's parts complain of there."""
    code: object = 0
    try:
        command(run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def main(listener: socket.socket) -> None:
    """Import, and serve."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # a fork's collector would look at all of it, and so copy it
    try:
        Server(listener).serve()
    except Forked as forked:
        asked, files = forked.args
    become(asked, files)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
