"""Records out of files that are kept by columns: Parquet and Arrow. Of each, a batch of rows is in
memory at a time (as Python's objects a part of it), and of its columns those that are wanted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from workers.config.base import InputError, one_line
from workers.data.sources.record import File, Record, Records, Wanted, unreadable
from workers.data.values import repeated

NO_VALUE = (ValueError, OverflowError, pa.ArrowException)
"""What Arrow raises for a value that Python has no like of, such as bytes that are no UTF-8."""
_FILE_MARK = b"ARROW1"
_GOES_ON, _END = b"\xff" * 4, b"\xff" * 4 + b"\x00" * 4
"""What begins each message of a stream, of Arrow 0.15 and later; what ends the stream."""
_AT_ONCE = 1000
"""Rows that are objects of Python at a time."""
_Opened = tuple[Sequence[str], Callable[[Sequence[str]], Iterable[pa.RecordBatch]]]
"""The names of a file's columns, and what reads some of them."""


def parquet_records(file: File, wanted: Wanted) -> Records:
    """Of a Parquet file."""
    return _records(file, wanted, "Parquet", _parquet)


def arrow_records(file: File, wanted: Wanted) -> Records:
    """Of an Arrow IPC file or stream, also one of `save_to_disk`."""
    return _records(file, wanted, "Arrow", _arrow)


def _records(
    file: File,
    wanted: Wanted,
    format: str,
    opened: Callable[[File], AbstractContextManager[_Opened]],
) -> Records:
    number = 0
    try:
        with opened(file) as (names, batches):
            if (twice := repeated(names)) is not None:
                raise InputError(f"{file.path}: has two columns {twice!r}")
            columns = list(wanted(file.path, names))
            for batch in batches(columns):
                chosen = batch.select(columns)
                for first in range(0, batch.num_rows, _AT_ONCE):  # a batch may be the whole file
                    yield from _rows(chosen.slice(first, _AT_ONCE), number + first, file.path)
                number += batch.num_rows
    except InputError:
        raise
    except (OSError, *NO_VALUE) as error:
        raise unreadable(file, format, one_line(error)) from None


@contextmanager
def _parquet(file: File) -> Iterator[_Opened]:
    with pq.ParquetFile(file.path, filesystem=file.filesystem) as opened:
        yield opened.schema_arrow.names, lambda columns: opened.iter_batches(columns=columns)


@contextmanager
def _arrow(file: File) -> Iterator[_Opened]:
    """The format with an index at its end, or the one without."""
    with file.filesystem.open_input_file(file.path) as opened:
        indexed = opened.read(len(_FILE_MARK)) == _FILE_MARK
        opened.seek(0)
        reader = pa.ipc.open_file(opened) if indexed else pa.ipc.open_stream(opened)
        names = reader.schema.names

        def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            fields = pa.ipc.IpcReadOptions(included_fields=[names.index(one) for one in columns])
            opened.seek(0)
            if not indexed:
                yield from pa.ipc.open_stream(opened, options=fields)
                _check_end(opened)
                return
            some = pa.ipc.open_file(opened, options=fields)
            yield from map(some.get_batch, range(some.num_record_batches))

        yield names, batches


def _check_end(opened: pa.NativeFile) -> None:
    """Arrow takes a stream that is cut off behind a batch for a shorter one."""
    end = opened.tell()
    opened.seek(0)
    if opened.read(len(_GOES_ON)) == _GOES_ON:
        opened.seek(max(0, end - len(_END)))
        if opened.read(len(_END)) != _END:
            raise pa.ArrowInvalid("it is cut off: its end mark is missing")


def _rows(batch: pa.RecordBatch, before: int, path: str) -> Iterator[Record]:
    """The rows of a batch that has `before` rows before it."""
    try:
        records = batch.to_pylist()
    except NO_VALUE as error:
        if batch.num_rows == 1:
            raise InputError(
                f"{path}: row {before + 1}: cannot be read: {one_line(error)}"
            ) from None
        for row in range(batch.num_rows):  # which of them it was
            yield from _rows(batch.slice(row, 1), before + row, path)
        return
    for number, record in enumerate(records, before + 1):
        yield f"{path}: row {number}", record
