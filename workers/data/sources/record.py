"""What every reader of a source gives, and is told."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import chain
from typing import Any, TypeAlias

from pyarrow import fs

from workers.config.base import InputError

Record: TypeAlias = tuple[str, Mapping[str, Any]]
"""Where a record lies (file and row, for messages), and its columns."""
Records: TypeAlias = Iterator[Record]
Wanted: TypeAlias = Callable[[str, Collection[str]], Sequence[str]]
"""Given a place and the columns there are, those to read; raises UnknownColumnsError if these make
no row."""

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""How the name of a packed file ends, in any case, and what unpacks it; files by columns are packed
within."""
LONGEST_LINE = 2**26
"""Bytes."""


class UnknownColumnsError(InputError):
    """None of the columns that make a row are there, or not all."""


@dataclass(frozen=True)
class File:
    """A file on a filesystem."""

    filesystem: fs.FileSystem
    path: str

    @property
    def info(self) -> fs.FileInfo:
        """Its size and time, asked for now."""
        return self.filesystem.get_file_info(self.path)

    def lines(self) -> BufferedReader:
        """Its bytes, unpacked where its name says that they are packed."""
        packed = (by for end, by in PACKED.items() if self.path.lower().endswith(end))
        stream = self.filesystem.open_input_stream(self.path, compression=next(packed, None))
        return BufferedReader(stream)


def lines_of(stream: BufferedReader, path: str, head: Iterable[bytes] = ()) -> Iterator[bytes]:
    """The lines of `head`, which were read before, and those that follow. InputError for one that
    has no end: packed, it is far shorter than the memory that it takes."""
    rest = iter(partial(stream.readline, LONGEST_LINE + 1), b"")
    for number, line in enumerate(chain(head, rest), 1):
        if len(line) > LONGEST_LINE:
            longest = LONGEST_LINE >> 20
            raise InputError(f"{path}: line {number}: is longer than {longest} MiB")
        yield line


Reader: TypeAlias = Callable[[File, Wanted], Records]


def picked(record: Mapping[str, Any], where: str, wanted: Wanted) -> Record:
    """A record of its own columns, as lines of JSON are, without those that are not wanted."""
    return where, {name: record[name] for name in wanted(where, record.keys())}


def unreadable(file: File, format: str, reason: str) -> InputError:
    """What is said where a file is not what its name says."""
    return InputError(f"{file.path}: cannot be read as {format}: {reason}")
