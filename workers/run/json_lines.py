"""Files that grow by lines of JSON, read while they are written and after a crash. No torch.

A crash or a full disk may cut the last line short. Who reads leaves it for later: it may be in the
making. Who appends ends it first, so that it spoils no other; from then on it is left out, with one
warning that says where it is.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from filelock import lock_descriptor, unlock_descriptor

from workers.run.files import sync_names

log = logging.getLogger(__name__)
Value = TypeVar("Value")
PATIENCE_SECONDS = 5.0
"""How long an append waits for others: what tells of a process that hangs must not hang with it."""
_LOOK_SECONDS = 0.001


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Add one line, from any thread of any process."""
    with path.open("ab+", buffering=0) as file:
        with _alone(file.fileno()):
            rest = _ending(file.fileno()) + line.encode() + b"\n"
            while rest:
                rest = rest[file.write(rest) :]
        if durable:
            os.fsync(file.fileno())
    if durable:
        sync_names(path.parent)


def read_lines(path: Path, parse: Callable[[bytes], Value] = json.loads) -> list[Value]:
    """All whole lines, in order; none where there is no file. A line is whole if `parse` raises no
    ValueError: lines are objects, so part of one is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found += [parse(line)] if line else []
        except ValueError:
            if number < len(lines):
                _warn(path, number)
    return found


@contextmanager
def _alone(handle: int) -> Iterator[None]:
    """No other append meanwhile: one that is killed has left what it leaves before we look."""
    with suppress(OSError):  # a filesystem without locks
        end = time.monotonic() + PATIENCE_SECONDS
        while not lock_descriptor(handle, blocking=False) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        with suppress(OSError):  # closing would not do: a child may have the file open, too
            unlock_descriptor(handle)


def _ending(handle: int) -> bytes:
    """What the last line lacks."""
    size = os.fstat(handle).st_size
    return b"\n" if size and os.pread(handle, 1, size - 1) != b"\n" else b""


@cache
def _warn(path: Path, number: int) -> None:
    """Once in a process: files of running studies are read every second."""
    log.warning("%s, line %d: is cut short, by a crash perhaps; it is left out", path, number)
