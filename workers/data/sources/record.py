"""What every reader of a source gives, and is told."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, TypeAlias

from pyarrow import fs

from workers.config.base import InputError

Record: TypeAlias = tuple[str, Mapping[str, Any]]
"""Where a record lies (file and row, for messages), and its columns."""
Records: TypeAlias = Iterator[Record]
Wanted: TypeAlias = Callable[[str, Collection[str]], Sequence[str]]
"""Given a place and the columns there are, those to read; raises UnknownColumnsError if these make
no row."""


class UnknownColumnsError(InputError):
    """None of the columns that make a row are there, or not all."""


@dataclass(frozen=True)
class File:
    """A file on a filesystem."""

    filesystem: fs.FileSystem
    path: str

    def lines(self) -> BufferedReader:
        """Its bytes, unpacked where its name says that they are packed."""
        return BufferedReader(self.filesystem.open_input_stream(self.path))


Reader: TypeAlias = Callable[[File, Wanted], Records]


def picked(record: Mapping[str, Any], where: str, wanted: Wanted) -> Record:
    """A record of its own columns, as lines of JSON are, without those that are not wanted."""
    return where, {name: record[name] for name in wanted(where, record.keys())}


def unreadable(file: File, format: str, reason: str) -> InputError:
    """What is said where a file is not what its name says."""
    return InputError(f"{file.path}: cannot be read as {format}: {reason}")
