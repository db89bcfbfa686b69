"""A stream of rows in windows: so many are encoded, shuffled and trained on, then the next ones."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.rows import Row, UnreadRow
from workers.data.sources.records import changed, listing_digest
from workers.data.store.arrow import StoredExamples, write_to
from workers.data.store.cache import cache_folder, cannot_write
from workers.data.store.entries import ROWS_FOLDER
from workers.data.store.token_store import EncodedSource, Tell, TokenStore
from workers.data.streaming.mixed import one_pass


@dataclass(frozen=True)
class Place:
    """A place in an endless stream: pass after pass over the same sources."""

    number: int = 0
    """Of the pass, from 0."""
    rows: int = 0
    """Of that pass that come before it."""
    rows_of_pass: int = 0
    """Of the last pass that has ended; 0 before one has."""

    @property
    def epochs(self) -> float:
        """Passes before it, as far as is known: 0 until one has ended."""
        return self.number + self.rows / self.rows_of_pass if self.rows_of_pass else 0.0


@dataclass(frozen=True)
class StreamWindow:
    """Rows that follow one another, encoded."""

    source: EncodedSource
    start: Place
    end: Place


class ReadingEndedError(Exception):
    """Nobody wants the rows that were being read."""


class StreamReader:
    """Reads a stream on from a place."""

    def __init__(self, encoder: Encoder, seed: int, noted: Mapping[str, str], start: Place) -> None:
        """`noted` are the digests of the sources' listings: before each pass they are compared."""
        self._encoder, self._seed, self._noted = encoder, seed, noted
        self._at = start
        self._rows = self._endless()
        self.read = 0
        """Rows that have been read, and passed by: others see that it goes on."""
        self.ended = False
        """Set by who wants no more of it: `next` then ends with ReadingEndedError."""

    def next(self, most: int) -> StreamWindow:
        """The next `data.streaming_buffer` rows, or so many. InputError for a bad row, and where
        none is kept."""
        start = self._at
        rows = islice(self._rows, min(most, self._encoder.data.streaming_buffer))
        source = encoded(self._encoder, (row.read() for row in rows))
        return StreamWindow(source, start, self._at)

    def _endless(self) -> Iterator[UnreadRow]:
        while True:
            self._check_same()
            yield from self._rest_of_pass()
            self._at = Place(self._at.number + 1, 0, self._at.rows)

    def _check_same(self) -> None:
        for source in dict.fromkeys(one.source for one in self._encoder.data.sources):
            if listing_digest(source) != self._noted[source]:
                raise changed(source)

    def _rest_of_pass(self) -> Iterator[UnreadRow]:
        before = self._at.rows
        for row in one_pass(self._encoder.data, self._seed, self._at.number):
            if self.ended:
                raise ReadingEndedError
            self.read += 1
            if before:
                before -= 1
                continue
            self._at = replace(self._at, rows=self._at.rows + 1)
            yield row


def looked_at(encoder: Encoder, tell: Tell = lambda *_: None) -> EncodedSource:
    """The rows to learn from that are looked at before a run: all of them; of a stream as many as
    a window has. InputError for one that is wrong, and where none is kept."""
    data = encoder.data
    if not data.streaming:
        return TokenStore(encoder, tell).training()
    some = islice(one_pass(data, seed=0, number=0), data.streaming_buffer)
    return encoded(encoder, (row.read() for row in some))


def encoded(encoder: Encoder, rows: Iterator[Row]) -> EncodedSource:
    """Rows encoded into a file without a name, which is gone when nobody reads it."""
    counts = RowCounts(f"{encoder.data.train_name}, streamed")
    folder = cache_folder(ROWS_FOLDER)
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (its reader keeps it open)
        write_to(file, encoder.kept(rows, counts), encoder.vocabulary, scored=False)
        file.flush()
    except OSError as error:
        raise cannot_write(folder, error) from None
    return EncodedSource(StoredExamples(file), counts)
