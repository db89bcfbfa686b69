"""One file of the audit log.

It is Parquet, which only a whole file is. While records come they go into a hidden stream of Arrow
batches, of which a reader finds all that was written, whenever the writer is killed.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import lock_descriptor

from orchestrator.telemetry.audit_row import SCHEMA, AuditRow, row
from orchestrator.telemetry.request_record import RequestRecord
from workers.run.files import new_file

log = logging.getLogger(__name__)
GROUP_ROWS = 200
"""Rows go to the file so many at a time, and so many are a row group of Parquet: of each group a
writer holds 16 kB until the file is closed, and readers open every one."""
GROUP_CHARACTERS = 2**22
"""… or fewer, where their texts are so long together."""
FLUSH_SECONDS = 1.0
"""… or where one has waited for so long."""


@dataclass
class AuditFile:
    """A file that is written under a hidden name, and gets its own when it is whole."""

    path: Path
    """What it will be called."""
    text: bool
    """Whether prompts and answers are kept."""
    lock: FileIO
    """Of the hidden stream: it is somebody's."""
    began: float = field(default_factory=time.monotonic)
    rows: int = 0
    """All that were handed over."""
    _group: list[AuditRow] = field(default_factory=list)
    """Those that wait for others."""
    _characters: int = 0
    _waits_since: float = 0.0

    def __post_init__(self) -> None:
        self._part = pa.OSFile(str(_hidden(self.path)), "wb")  # each write goes to the system
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_stream(self._part, SCHEMA, options=options)

    @classmethod
    def begin(cls, folder: Path, text: bool) -> "AuditFile":
        """Open a new file, readable by this user alone."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        path = folder / f"audit-{stamp}-{os.getpid()}.parquet"
        lock = _new(_hidden(path))
        lock_descriptor(lock.fileno())
        return cls(path, text, lock)

    @property
    def due(self) -> float | None:
        """When, by the monotonic clock, what waits is to be flushed; None where nothing does."""
        return self._waits_since + FLUSH_SECONDS if self._group else None

    def write(self, records: Sequence[RequestRecord]) -> None:
        """Append records. Where that fails, the file is to be abandoned."""
        self.rows += len(records)
        for record in records:
            if not self._group:
                self._waits_since = time.monotonic()
            self._group.append(row(record, self.text))
            self._characters += len(record.prompt or "") + len(record.answer or "")
            if len(self._group) >= GROUP_ROWS or self._characters >= GROUP_CHARACTERS:
                self.flush()

    def flush(self) -> None:
        """Hand what waits over to the system: it outlives this process."""
        if self._group:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._group, SCHEMA))
            self._group, self._characters = [], 0

    def close(self) -> None:
        """Complete the file and let readers see it."""
        self.flush()
        self._end()
        _publish(self.path)
        self.lock.close()

    def abandon(self) -> None:
        """Forget the file, and what was written to it."""
        with suppress(Exception):
            self._end()
        for path in (_hidden(self.path), _unnamed(self.path)):
            path.unlink(missing_ok=True)
        self.lock.close()

    def _end(self) -> None:
        with self._part:
            self._writer.close()


def recover(folder: Path) -> None:
    """Give readers what killed gateways have left in `folder`; that of living ones stays."""
    for hidden in folder.glob(".audit-*.parquet.part"):
        try:
            with hidden.open("r+b") as lock:
                if lock_descriptor(lock.fileno(), blocking=False):
                    _publish(hidden.with_name(hidden.name.removeprefix(".").removesuffix(".part")))
        except (OSError, pa.ArrowException) as error:
            log.warning("audit: %s is left as it is: %s", hidden, error)


def _publish(path: Path) -> None:
    """Write what the hidden stream holds as a Parquet file, and remove the stream. The name comes
    after the content has reached the disk."""
    hidden, unnamed = _hidden(path), _unnamed(path)
    unnamed.unlink(missing_ok=True)
    if hidden.stat().st_size and not path.exists():  # else killed just after it got its name
        with (
            new_file(path, durable=True, mode=0o600, hidden=unnamed) as file,
            pa.OSFile(str(hidden)) as part,
            pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer,
        ):
            for group in _groups(_batches(pa.ipc.open_stream(part))):
                writer.write_table(group)
    hidden.unlink()


def _batches(stream: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """All that are whole: the last may have been cut off."""
    with suppress(pa.ArrowInvalid, OSError):
        yield from stream


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Few and large ones."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= GROUP_ROWS or (
            sum(one.nbytes for one in held) >= GROUP_CHARACTERS
        ):
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _new(path: Path) -> FileIO:
    """A new file for this user alone, without a buffer of ours."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    return open(handle, "r+b", buffering=0)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _unnamed(path: Path) -> Path:
    return path.with_name(f".{path.name}.whole")
