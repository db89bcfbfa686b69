"""The token store: a run's rows, encoded once for all runs and workers of this node."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from workers.config.data import DataSpec
from workers.config.sources import SourceSpec
from workers.data.counts import RowCounts
from workers.data.encode import Encoder
from workers.data.rows import Row, training_rows, validation_rows
from workers.data.sources.records import changed, digest
from workers.data.store import arrow
from workers.data.store.cache import cache_folder, limit_bytes
from workers.data.store.entries import ROWS, ROWS_FOLDER, Cache, StoreEntry
from workers.data.store.identity import entry_name
from workers.data.store.processes import Processes, cpus

NOTE = "counts.json"
OFTEN = 256
"""Rows between two words on how far it is."""
log = logging.getLogger(__name__)
Tell = Callable[[str, int], None]
"""Told which source, and how many of its rows are encoded."""


@dataclass(frozen=True)
class EncodedSource:
    """The rows of a source that are kept, encoded."""

    examples: arrow.StoredExamples
    counts: RowCounts
    """What encoding did to them."""

    @property
    def rows(self) -> arrow.StoredRows:
        """The rows themselves, of those to be compared on."""
        return self.examples.rows


@dataclass(frozen=True)
class TokenStore:
    """Encodes rows as an encoder does, or finds them encoded. InputError for the first row that is
    wrong, or where none is left."""

    encoder: Encoder
    tell: Tell = lambda *_: None
    """Called again and again while rows are encoded, by this process or another one."""
    noted: Mapping[str, str] | None = None
    """Digests of the sources, where they have been taken: only rows with these are given."""

    def training(self) -> EncodedSource:
        """The rows to learn from."""
        data = self.encoder.data
        which = _which(data, data.sources) | {"max_rows": data.max_rows}
        return self._stored(_Asked(data.train_name, which, partial(training_rows, data)))

    def validation(self, rows_per_task: int | None = None) -> EncodedSource:
        """The rows that trials are compared on, with their choices."""
        data = self.encoder.data
        which = _which(data, data.compared_on) | {"rows_per_task": rows_per_task}
        read = partial(validation_rows, data, rows_per_task)
        return self._stored(_Asked(data.validation_name, which, read, scored=True))

    def _stored(self, asked: "_Asked") -> EncodedSource:
        waiting = partial(self.tell, asked.name, 0)
        wanted = asked.digests(waiting) if self.noted is None else asked.of(self.noted)
        name = entry_name(self.encoder, asked.which, wanted)
        cache = Cache(cache_folder(ROWS_FOLDER), limit_bytes())
        write = partial(self._write, asked, wanted)
        entry = cache.opened(name, write, waiting)
        try:
            return _read(entry)
        except (OSError, ValueError) as error:  # the disk's doing, perhaps
            log.warning(f"{entry.folder}: is damaged, so its rows are encoded again: {error}")
            cache.discard(entry)
            return _read(cache.opened(name, write, waiting))

    def _write(self, asked: "_Asked", wanted: list[str], folder: Path) -> None:
        counts = RowCounts(asked.name)
        processes = Processes(self.encoder, self.encoder.data.processes or cpus())
        kept = processes.kept(self._told(asked.read(), counts), counts, asked.scored)
        arrow.write(folder / ROWS, kept, self.encoder.vocabulary, scored=asked.scored)
        if asked.digests(partial(self.tell, asked.name, counts.rows)) != wanted:
            raise changed(asked.name)
        with (folder / ROWS).open("rb") as file:
            note = _Note(counts, arrow.checksum(file))
        (folder / NOTE).write_text(json.dumps(asdict(note)))

    def _told(self, rows: Iterable[Row], counts: RowCounts) -> Iterator[Row]:
        for done, row in enumerate(rows):
            if done % OFTEN == 0:
                self.tell(counts.source, done)
            yield row


@dataclass(frozen=True)
class _Asked:
    """Which rows are wanted."""

    name: str
    """For messages."""
    which: dict[str, Any]
    """The sources and what of them, for the entry's name."""
    read: Callable[[], Iterable[Row]]
    scored: bool = False

    def digests(self, moving: Callable[[], None]) -> list[str]:
        """Of the sources' content now."""
        return [digest(source, moving) for source in self.which["sources"]]

    def of(self, noted: Mapping[str, str]) -> list[str]:
        """Those that were noted."""
        return [noted[source] for source in self.which["sources"]]


@dataclass(frozen=True)
class _Note:
    """What lies beside the rows."""

    counts: RowCounts
    checksum: str
    """Of the rows' file."""


def _which(data: DataSpec, sources: Sequence[SourceSpec]) -> dict[str, Any]:
    return {
        "sources": [one.source for one in sources],
        "tasks": [one.task for one in sources],
        "held_out": data.held_out,
    }


def _read(entry: StoreEntry) -> EncodedSource:
    """ValueError where anything is not as it was written: it would be learned."""
    note = TypeAdapter(_Note).validate_json((entry.folder / NOTE).read_bytes(), strict=True)
    if arrow.checksum(entry.held) != note.checksum:
        raise ValueError(f"{ROWS} has another checksum")
    return EncodedSource(arrow.StoredExamples(entry.held), note.counts)
