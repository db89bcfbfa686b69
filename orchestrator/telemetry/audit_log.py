"""The audit log: one record for each request, in Parquet files that readers only see whole.

A thread writes; the gateway only puts records into a bounded queue, and where the disk is too slow
records are dropped and counted, and no answer waits.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.config.audit import AuditSpec
from orchestrator.telemetry.audit_file import AuditFile, recover
from orchestrator.telemetry.request_record import RequestRecord

log = logging.getLogger(__name__)
CLOSE_SECONDS = 30
TOGETHER = 500
"""Records taken from the queue at once at most."""


class AuditLog:
    """An observer that keeps what was answered. Close it to bring the last records to the disk."""

    def __init__(self, spec: AuditSpec, folder: str | Path) -> None:
        """`folder` is made where it is missing, for this user alone."""
        self._spec, self._folder = spec, Path(folder)
        self._queue: queue.Queue[RequestRecord | None] = queue.Queue(spec.queue)
        self._file: AuditFile | None = None
        self.dropped = 0
        """Records that were lost: the queue was full, or the disk refused them."""
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def __call__(self, record: RequestRecord) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._drop(1, "the disk is too slow")

    def close(self) -> None:
        """Write what waits, and close the file."""
        try:
            self._queue.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            log.error("audit: the disk does not keep up; %d records are lost", self._queue.qsize())
        self._thread.join(CLOSE_SECONDS)

    def _write_all(self) -> None:
        try:
            recover(self._folder)
        except Exception as error:
            log.error("audit: what others have left cannot be read: %s", error)
        for records in self._batches():
            try:
                if records:
                    self._write(records)
                elif self._is_due():
                    self._finish()
                elif self._file is not None:
                    self._file.flush()
            except Exception as error:  # a full disk, say: later records may find room
                self._lose(records, error)
        try:
            self._finish()
        except Exception as error:
            self._lose([], error)

    def _batches(self) -> Iterator[list[RequestRecord]]:
        """What waits, again and again until the log is closed; empty where nothing came."""
        while True:
            records: list[RequestRecord] = []
            try:
                first = self._queue.get(timeout=self._patience())
                while first is not None:
                    records.append(first)
                    if len(records) >= TOGETHER:
                        break
                    first = self._queue.get_nowait()
            except queue.Empty:
                yield records
                continue
            yield records
            if first is None:
                return

    def _write(self, records: list[RequestRecord]) -> None:
        if self._file is None:
            self._file = AuditFile.begin(self._folder, self._spec.text)
        self._file.write(records)
        if self._file.rows >= self._spec.rotate_rows or self._is_due():
            self._finish()

    def _patience(self) -> float | None:
        """Seconds until the file must be flushed or closed; None without one."""
        if self._file is None:
            return None
        end = min(self._due(self._file), self._file.due or math.inf)
        return max(end - time.monotonic(), 0.01)

    def _is_due(self) -> bool:
        return self._file is not None and time.monotonic() >= self._due(self._file)

    def _due(self, file: AuditFile) -> float:
        return file.began + 60 * self._spec.rotate_minutes

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lose(self, records: list[RequestRecord], error: Exception) -> None:
        """Drop the file that was begun, with all that was handed to it; `records` where there is
        none."""
        file, self._file = self._file, None
        self._drop(file.rows if file else len(records), str(error) or type(error).__name__)
        if file is not None:
            file.abandon()

    def _drop(self, records: int, why: str) -> None:
        if not self.dropped:
            log.error("audit: records are lost: %s", why)
        self.dropped += records
