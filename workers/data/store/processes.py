"""Encoding by several processes. Rows go out some at a time, and come back in their order.

A tokenizer uses all cores by itself; what it leaves to one are the chat template and the rows. So
this pays where there are many rows, and more than a few cores.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle, islice
from multiprocessing.connection import Connection
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.encode import Encoder, chunks
from workers.data.example import Example
from workers.data.rows import Row

FEW = 20_000
"""Rows that are encoded here before others start, which takes them some seconds."""
SOME = 512
"""Rows that go out together."""
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
    # Not forked: this process has threads, whose locks would stay locked in a copy.
    fresh, given = multiprocessing.get_context("spawn"), processes.encoder
    pipes = [fresh.Pipe() for _ in range(processes.count)]
    made = [
        fresh.Process(target=serve, args=(theirs, given.tokenizer, given.data, scored), daemon=True)
        for _, theirs in pipes
    ]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is ours alone
    try:
        for one in made:
            one.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        for _, theirs in pipes:
            theirs.close()
        yield [ours for ours, _ in pipes]
    finally:
        for one, (ours, _) in zip(made, pipes, strict=True):
            ours.close()
            one.terminate()
            one.join()


def _in_turn(others: Sequence[Connection], packages: Iterable[list[Row]]) -> Iterator[Answer]:
    """Answers in the packages' order. Who has not answered gets nothing more, so that never both
    ends of a pipe write and neither reads."""
    asked: deque[Connection] = deque()
    failed: InputError | None = None
    unread = iter(packages)
    try:
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
    except (EOFError, ConnectionError):
        raise InputError(
            "a process that encodes rows was killed, perhaps for its memory; fewer take less: "
            "data.processes"
        ) from None
    if failed:
        raise failed


def serve(
    pipe: Connection, tokenizer: PreTrainedTokenizerBase, data: DataSpec, scored: bool
) -> None:
    """Encode what comes until the other end is closed: what such a process runs."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many of us as cores
    encoder = Encoder(tokenizer, data)
    while True:
        try:
            rows: list[Row] = pipe.recv()
            counts = RowCounts("")
            answer: Answer
            try:
                answer = (list(encoder.some_kept(rows, counts, scored)), counts)
            except InputError as error:
                answer = str(error)
            pipe.send(answer)
        except (EOFError, ConnectionError):
            return
