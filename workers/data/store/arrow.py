"""Encoded rows as an Arrow file: written as they come, read where they are asked for.

Columns: `ids` (tokens), `spans` (start, stop, weight of what is learned), `key` (what the row is
known by), and `row` (a row of workers.data.rows as JSON) where rows are evaluated. A number of rows
makes a record batch. Nothing is compressed: the file is mapped into memory, and shared by all
processes that read it.
"""

import json
import mmap
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from workers.data.example import Example, Span
from workers.data.rows import Row

ROWS, TOKENS = 8192, 2**22
"""A record batch ends after so many rows, or so many tokens."""
SMALL = 2**16
"""Vocabularies up to this have ids of two bytes."""
BLOCK = 2**20
_SPAN = pa.struct([("start", pa.uint32()), ("stop", pa.uint32()), ("weight", pa.float64())])
_SPAN_FIELDS = tuple(field.name for field in _SPAN)
Encoded = tuple[Row, Example]
T = TypeVar("T")


def write(path: Path, kept: Iterable[Encoded], vocabulary: int, *, scored: bool) -> None:
    """Write rows as they come; with those that are `scored`, all that is known of a row."""
    with path.open("wb") as file:
        write_to(file, kept, vocabulary, scored=scored)


def write_to(file: BinaryIO, kept: Iterable[Encoded], vocabulary: int, *, scored: bool) -> None:
    """The same, into an open file."""
    ids = pa.uint16() if vocabulary <= SMALL else pa.uint32()
    fields = [("ids", pa.list_(ids)), ("spans", pa.list_(_SPAN)), ("key", pa.uint64())]
    schema = pa.schema(fields + [("row", pa.binary())] * scored)
    with pa.ipc.new_file(file, schema) as writer:
        for some in _batches(kept):
            examples = [example for _, example in some]
            keys = pa.array([row.key for row, _ in some], pa.uint64())
            arrays = [_lists([one.ids for one in examples], ids), _spans(examples), keys]
            if scored:
                arrays.append(pa.array([_json(row) for row, _ in some], pa.binary()))
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def checksum(file: BinaryIO) -> str:
    """Of an open file. A gigabyte takes a tenth of a second, and none of it stays in memory."""
    state = xxhash.xxh3_64()
    file.seek(0)
    while block := file.read(BLOCK):
        state.update(block)
    return state.hexdigest()


class _MadeWhenAsked(Sequence[T], ABC):
    """A sequence whose items are made anew each time."""

    @abstractmethod
    def one(self, index: int) -> T:
        """The item at an index, which may be negative. IndexError beyond the ends."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.one(at) for at in range(*index.indices(len(self)))]
        return self.one(index)


class StoredExamples(_MadeWhenAsked[Example]):
    """The examples of a file. Each is made when it is asked for, its ids a view of the file."""

    def __init__(self, file: BinaryIO) -> None:
        """`file` stays open as long as this lives. pa.ArrowInvalid where it is no such file."""
        self._file = file
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.py_buffer(self._map))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._parts = [_Part.of(batch) for batch in batches]
        self._ends = [*accumulate(batch.num_rows for batch in batches)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def one(self, index: int) -> Example:
        """That of a row."""
        part, at = self.place(index)
        return part.example(at)

    @cached_property
    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of each."""
        found = [np.diff(part.offsets).astype(np.uint32) for part in self._parts]
        return np.concatenate(found) if found else np.zeros(0, np.uint32)

    def having(self, tokens: Iterable[int]) -> set[int]:
        """Those of these tokens that any row has."""
        lacking, found = set(tokens), set[int]()
        for part in self._parts:
            if lacking:  # most are in the first rows
                here = np.unique(part.ids[np.isin(part.ids, [*lacking])])
                found |= {*here.tolist()}
                lacking -= found
        return found

    @property
    def bytes(self) -> int:
        """Of the file."""
        return len(self._map)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """What each row is known by (`workers.data.split`)."""
        found = [part.keys for part in self._parts]
        return np.concatenate(found) if found else np.zeros(0, np.uint64)

    @property
    def rows(self) -> "StoredRows":
        """What is known of the rows, of a file that was written so."""
        return StoredRows(self)

    def place(self, index: int) -> tuple["_Part", int]:
        """The record batch of a row, and its place there."""
        at = range(len(self))[index]
        number = bisect_right(self._ends, at)
        return self._parts[number], at - (self._ends[number - 1] if number else 0)


class StoredRows(_MadeWhenAsked[Row]):
    """The rows of a file's examples, each read when it is asked for."""

    def __init__(self, examples: StoredExamples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def one(self, index: int) -> Row:
        """That of an example."""
        part, at = self._examples.place(index)
        return part.row(at)


class _Part(NamedTuple):
    """Views of a record batch."""

    offsets: NDArray[np.int32]
    ids: NDArray[np.unsignedinteger[Any]]
    span_offsets: NDArray[np.int32]
    starts: NDArray[np.uint32]
    stops: NDArray[np.uint32]
    weights: NDArray[np.float64]
    keys: NDArray[np.uint64]
    rows: Any

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "_Part":
        ids, spans = batch.column("ids"), batch.column("spans")
        start, stop, weight = (spans.values.field(name).to_numpy() for name in _SPAN_FIELDS)
        rows = batch.column("row") if "row" in batch.schema.names else None
        offsets, span_offsets = ids.offsets.to_numpy(), spans.offsets.to_numpy()
        keys = batch.column("key").to_numpy()
        return cls(offsets, ids.values.to_numpy(), span_offsets, start, stop, weight, keys, rows)

    def example(self, at: int) -> Example:
        first, last = self.offsets[at], self.offsets[at + 1]
        spans = range(self.span_offsets[at], self.span_offsets[at + 1])
        learned = (
            Span(int(self.starts[one]), int(self.stops[one]), float(self.weights[one]))
            for one in spans
        )
        return Example(self.ids[first:last], tuple(learned))  # type: ignore[arg-type]

    def row(self, at: int) -> Row:
        values = json.loads(self.rows[at].as_py())
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return Row(**{**values, **lists})


def _batches(kept: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    some: list[Encoded] = []
    tokens = 0
    for one in kept:
        some.append(one)
        tokens += len(one[1])
        if len(some) >= ROWS or tokens >= TOKENS:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def _lists(values: Sequence[Sequence[int]], kind: pa.DataType) -> pa.ListArray:
    flat = np.concatenate([np.asarray(one, kind.to_pandas_dtype()) for one in values])
    return pa.ListArray.from_arrays(_offsets(values), pa.array(flat))


def _spans(examples: Sequence[Example]) -> pa.ListArray:
    spans = [span for example in examples for span in example.spans]
    columns = [
        pa.array([getattr(span, field.name) for span in spans], field.type) for field in _SPAN
    ]
    values = pa.StructArray.from_arrays(columns, fields=list(_SPAN))
    return pa.ListArray.from_arrays(_offsets([example.spans for example in examples]), values)


def _offsets(values: Iterable[Sequence[Any]]) -> pa.Array:
    return pa.array([0, *accumulate(map(len, values))], pa.int32())


def _json(row: Row) -> bytes:
    return json.dumps(asdict(row)).encode()
