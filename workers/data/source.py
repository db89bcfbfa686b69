"""Records out of Parquet or JSON Lines files on any filesystem that pyarrow reads, or out of the
Hugging Face hub."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from workers.config.base import InputError, one_line
from workers.config.data import DataSpec
from workers.data.json_line import json_record
from workers.data.values import repeated

HUB = "hub:"
PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst")

_NO_VALUE = (ValueError, OverflowError, pa.ArrowException)
"""What Arrow raises for a value that Python has no like of, such as bytes that are no UTF-8."""

Record = tuple[str, Mapping[str, Any]]
"""Where a record lies (file and row, for messages), and its columns."""
Wanted = Callable[[str, Collection[str]], Sequence[str]]
"""Given a place and the columns there are, those to read; raises InputError if one is missing."""


def records(source: str, wanted: Wanted) -> Iterator[Record]:
    """Every record of a source, in order. Nothing is read beyond what the caller takes.

    Raises InputError for a file that is missing, unreadable, or in another format.
    """
    if source.startswith(HUB):
        yield from _hub_records(source, wanted)
        return
    filesystem, paths = _files(source)
    for path in paths:
        if path.endswith(PARQUET):
            yield from _parquet_records(filesystem, path, wanted)
        else:
            yield from _json_records(filesystem, path, wanted)


def digest(source: str) -> str:
    """sha256 over the bytes of a source's files, or over the fingerprint of a hub data set."""
    state = hashlib.sha256()
    if source.startswith(HUB):
        state.update(_hub_dataset(source)._fingerprint.encode())
        return state.hexdigest()
    filesystem, paths = _files(source)
    for path in paths:
        with filesystem.open_input_stream(path, compression=None) as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def data_digest(spec: DataSpec) -> str:
    """Digest of the content of all of a run's sources, and of what is held out of them."""
    names = [one.source for one in spec.sources]
    names += [spec.validation] if isinstance(spec.validation, str) else []
    split = f" held out: {spec.held_out!r}" if spec.held_out else ""
    return hashlib.sha256(("".join(map(digest, names)) + split).encode()).hexdigest()


def _files(source: str) -> tuple[fs.FileSystem, list[str]]:
    """The filesystem of a path, glob or folder, and its data files in alphabetical order."""
    try:
        if "://" in source:
            filesystem, path = fs.FileSystem.from_uri(source)
        else:
            filesystem, path = fs.LocalFileSystem(), str(Path(source).expanduser().absolute())
        paths = _matches(filesystem, path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{source}: cannot be read: {one_line(error)}") from None
    if not paths:
        raise InputError(f"{source}: no such file, and no Parquet or JSONL file matches it")
    if not paths[0].endswith(PARQUET + JSON_LINES):
        allowed = ", ".join(PARQUET + JSON_LINES)
        raise InputError(
            f"{source}: is neither Parquet nor JSONL by its name; allowed are {allowed}"
        )
    return filesystem, paths


def _matches(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The file or the folder of this very name, even one with a glob's marks; else its matches."""
    info = filesystem.get_file_info(path)
    if info.is_file:
        return [path]
    if info.type == fs.FileType.Directory:
        found = [entry.path for entry in filesystem.get_file_info(fs.FileSelector(path))]
    else:
        found = ArrowFSWrapper(filesystem).glob(path)
    return sorted(name for name in found if name.endswith(PARQUET + JSON_LINES))


def _parquet_records(filesystem: fs.FileSystem, path: str, wanted: Wanted) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            names = file.schema_arrow.names
            if (twice := repeated(names)) is not None:
                raise InputError(f"{path}: has two columns {twice!r}")
            columns = list(wanted(path, names))
            number = 0
            for batch in file.iter_batches(columns=columns):
                yield from _rows(batch, number, path)
                number += batch.num_rows
    except InputError:
        raise
    except (OSError, *_NO_VALUE) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {one_line(error)}") from None


def _rows(batch: pa.RecordBatch, before: int, path: str) -> Iterator[Record]:
    """The rows of a batch that has `before` rows before it."""
    try:
        records = batch.to_pylist()
    except _NO_VALUE as error:
        if batch.num_rows == 1:
            raise InputError(
                f"{path}: row {before + 1}: cannot be read: {one_line(error)}"
            ) from None
        for row in range(batch.num_rows):  # which of them it was
            yield from _rows(batch.slice(row, 1), before + row, path)
        return
    for number, record in enumerate(records, before + 1):
        yield f"{path}: row {number}", record


def _json_records(filesystem: fs.FileSystem, path: str, wanted: Wanted) -> Iterator[Record]:
    # Line by line and not by pyarrow.json, which fails where a column's type varies between
    # lines, and cannot say in which line. Lines need not have the same columns.
    try:
        with filesystem.open_input_stream(path) as stream:
            for number, line in enumerate(BufferedReader(stream), 1):
                if not line.strip():
                    continue
                where = f"{path}: line {number}"
                record = json_record(line, where)
                yield where, {name: record[name] for name in wanted(where, record.keys())}
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {one_line(error)}") from None


def _hub_records(source: str, wanted: Wanted) -> Iterator[Record]:
    data = _hub_dataset(source)
    columns = list(wanted(source, data.column_names))
    number = 0
    try:
        for number, record in enumerate(data.select_columns(columns), 1):
            yield f"{source}: row {number}", record
    except _NO_VALUE as error:
        raise InputError(f"{source}: row {number + 1}: cannot be read: {one_line(error)}") from None


def _hub_dataset(source: str) -> Any:
    """The data set behind `hub:NAME[:CONFIG][#SPLIT]`; the split is `train` where none is named."""
    from datasets import load_dataset

    name, _, split = source.removeprefix(HUB).partition("#")
    name, _, config = name.partition(":")
    try:
        return load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # whatever is wrong with somebody's files: a dozen kinds
        reason = one_line(_first_cause(error))
        raise InputError(f"{source}: cannot be loaded from the hub: {reason}") from None


def _first_cause(error: BaseException) -> BaseException:
    """What an error came from: `datasets` says of most that one occurred."""
    return _first_cause(error.__cause__) if error.__cause__ else error
