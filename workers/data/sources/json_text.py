"""Records out of JSON: lines of it, and whole documents that hold a list."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from io import BufferedReader
from itertools import chain

import pyarrow as pa

from workers.config.base import InputError, one_line
from workers.data.sources.json_document import Document
from workers.data.sources.json_value import json_record
from workers.data.sources.record import (
    LONGEST_LINE,
    File,
    Records,
    Wanted,
    lines_of,
    picked,
    unreadable,
)

BLOCK = 2**20
"""Bytes of a document that are read at a time."""


def line_records(file: File, wanted: Wanted) -> Records:
    """Of JSON lines, which need not have the same columns."""
    # Not by pyarrow.json, which fails where a column's type varies between lines, and cannot say
    # in which line.
    try:
        with file.lines() as stream:
            yield from _of_lines(lines_of(stream, file.path), file, wanted)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, "JSON lines", one_line(error)) from None


def json_records(file: File, wanted: Wanted) -> Records:
    """Of a list of objects, of an object that holds one, or of JSON lines that are named .json."""
    try:
        with file.lines() as stream:
            head, lines = _head(stream)
            if lines:
                yield from _of_lines(lines_of(stream, file.path, head), file, wanted)
            else:
                blocks = iter(partial(stream.read, BLOCK), b"")
                yield from Document(file.path, chain(head, blocks), wanted).records()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, "JSON", one_line(error)) from None


def _of_lines(lines: Iterable[bytes], file: File, wanted: Wanted) -> Records:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{file.path}: line {number}"
            yield picked(json_record(line, where), where, wanted)


def _head(stream: BufferedReader) -> tuple[list[bytes], bool]:
    """The first lines, up to the second that is not empty; whether the first is a whole object, so
    that each line is a record. Of what is no line, a block at most."""
    head, found = [], 0
    while line := stream.readline(LONGEST_LINE + 1 if found else BLOCK):
        head.append(line)
        if line.strip():
            found += 1
            if found == 2 or not _is_object(line):
                break
    return head, found == 2


def _is_object(line: bytes) -> bool:
    with suppress(InputError):
        return bool(json_record(line, ""))
    return False
