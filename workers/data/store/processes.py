"""Encoding by several processes. Rows go out some at a time, and come back in their order.

A tokenizer uses all cores by itself; what it leaves to one are the chat template and the rows. So
this pays where there are many rows, and more than a few cores.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, cycle, islice
from multiprocessing.connection import Connection, Pipe
from typing import TypeAlias

from workers.config.base import InputError, one_line
from workers.data.counts import RowCounts
from workers.data.encode import Encoder, chunks
from workers.data.example import Example
from workers.data.rows import Row

FEW = 20_000
"""Rows that are encoded here before others start, which takes them some seconds."""
SOME = 512
"""Rows that go out together."""
_SERVE = (
    "import sys; from multiprocessing.connection import Connection; "
    "from workers.data.store.processes import serve; serve(Connection(int(sys.argv[1])))"
)
Kept: TypeAlias = Iterator[tuple[Row, Example]]
Answer: TypeAlias = tuple[list[tuple[Row, Example]], RowCounts] | str
"""Rows and their counts, or what is wrong with one of them."""


def cpus() -> int:
    """Those that this process may use: what Ray gives a worker, or what the system does."""
    given = os.environ.get("OMP_NUM_THREADS", "")  # Ray sets it
    return int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Processes:
    """So many, which encode as `encoder` does."""

    encoder: Encoder
    count: int

    def kept(self, rows: Iterable[Row], counts: RowCounts, scored: bool = False) -> Kept:
        """What `Encoder.kept` gives, with the same order, counts and errors."""
        unread, here = iter(rows), self.encoder.some_kept
        yield from here(islice(unread, FEW), counts, scored)
        if (more := next(unread, None)) is not None:
            rest = self._elsewhere if self.count > 1 else here
            yield from rest(chain([more], unread), counts, scored)
        counts.check_left()

    def _elsewhere(self, rows: Iterable[Row], counts: RowCounts, scored: bool) -> Kept:
        with _started(self, scored) as others:
            for answer in _in_turn(others, chunks(rows, SOME)):
                if isinstance(answer, str):
                    raise InputError(answer)
                kept, counted = answer
                counts.merge(counted)
                yield from kept


@contextmanager
def _started(processes: Processes, scored: bool) -> Iterator[list[Connection]]:
    """Our ends of their pipes. They end with the block, and with this process."""
    given = processes.encoder
    with ExitStack() as stack:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is ours alone
        try:
            pipes = [stack.enter_context(_process()) for _ in range(processes.count)]
        except OSError as error:
            raise InputError(
                f"no process that encodes rows can be started: {one_line(error)}; data.processes: "
                "1 wants none"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with _told_if_killed():
            for pipe in pipes:
                pipe.send((given.tokenizer, given.data, scored))
        yield pipes


@contextmanager
def _process() -> Iterator[Connection]:
    """Our end of the pipe of one that serves. Neither forked, since this process has threads, whose
    locks would stay locked in a copy; nor started by `multiprocessing`, which runs the caller's
    script anew: that would wait for the very rows that we encode."""
    ours, theirs = Pipe()
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    with ours:
        with theirs:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
        try:
            yield ours
        finally:
            ours.close()
            process.terminate()
            process.wait()


@contextmanager
def _told_if_killed() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise InputError(
            "a process that encodes rows was killed, perhaps for its memory; fewer take less: "
            "data.processes"
        ) from None


def _in_turn(others: Sequence[Connection], packages: Iterable[list[Row]]) -> Iterator[Answer]:
    """Answers in the packages' order. Who has not answered gets nothing more, so that never both
    ends of a pipe write and neither reads."""
    asked: deque[Connection] = deque()
    failed: InputError | None = None
    unread = iter(packages)
    with _told_if_killed():
        for one in cycle(others):
            if len(asked) == len(others):
                yield asked.popleft().recv()
            try:
                if (some := next(unread, None)) is None:
                    break
            except InputError as error:  # those before the bad row may be wrong, too
                failed = error
                break
            one.send(some)
            asked.append(one)
        while asked:
            yield asked.popleft().recv()
    if failed:
        raise failed


def serve(pipe: Connection) -> None:
    """Encode what comes until the other end is closed: what such a process runs."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many of us as cores
    with suppress(EOFError, ConnectionError):
        tokenizer, data, scored = pipe.recv()
        encoder = Encoder(tokenizer, data)
        while True:
            pipe.send(_answer(encoder, pipe.recv(), scored))


def _answer(encoder: Encoder, rows: list[Row], scored: bool) -> Answer:
    counts = RowCounts("")
    try:
        return list(encoder.some_kept(rows, counts, scored)), counts
    except InputError as error:
        return str(error)
