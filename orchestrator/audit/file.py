"""One Parquet file of the audit log."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.answered import Answered

PLACE = pa.struct(
    [
        ("layer", pa.string()),
        ("load", pa.list_(pa.int32())),
        ("entropy", pa.float32()),
        ("margin", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("us", "UTC")),
        ("request", pa.string()),
        ("name", pa.string()),
        ("version", pa.string()),
        ("role", pa.string()),
        ("caller", pa.string()),
        ("status", pa.int16()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("seconds", pa.float64()),
        ("first_token_seconds", pa.float64()),
        ("routed_tokens", pa.int32()),
        ("experts", pa.list_(PLACE)),
        ("prompt", pa.string()),
        ("answer", pa.string()),
    ]
)
"""Columns of the files. `experts` says for each routed place how many slots each expert got, and
the means over tokens of the router's entropy and of its margin."""
GROUP_ROWS = 200
"""Rows go to the file so many at a time, as a row group: of each group the writer holds 16 kB until
the file is closed, and readers open every one. Nothing is safe on the disk before that in any
case: a Parquet file without its end cannot be read."""
GROUP_CHARACTERS = 2**22
"""… or fewer, where their texts are so long together."""


@dataclass
class AuditFile:
    """A file that is written under a hidden name, and gets its own when it is whole."""

    path: Path
    """What it will be called."""
    text: bool
    """Whether prompts and answers are kept."""
    writer: pq.ParquetWriter
    began: float = field(default_factory=time.monotonic)
    rows: int = 0
    """All that were handed over."""
    _group: list[dict[str, Any]] = field(default_factory=list)
    """Those that wait for others."""
    _characters: int = 0

    @classmethod
    def begin(cls, folder: Path, text: bool) -> "AuditFile":
        """Open a new file, readable by this user alone."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        path = folder / f"audit-{stamp}-{os.getpid()}.parquet"
        hidden = _hidden(path)
        os.close(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return cls(path, text, pq.ParquetWriter(hidden, SCHEMA, compression="zstd"))

    def write(self, records: Sequence[Answered]) -> None:
        """Append records. Where that fails, the file is to be abandoned."""
        self.rows += len(records)
        for record in records:
            self._group.append(row(record, self.text))
            self._characters += len(record.prompt or "") + len(record.answer or "")
            if len(self._group) >= GROUP_ROWS or self._characters >= GROUP_CHARACTERS:
                self._write_group()

    def close(self) -> None:
        """Complete the file and let readers see it."""
        if self._group:
            self._write_group()
        self.writer.close()
        os.replace(_hidden(self.path), self.path)

    def abandon(self) -> None:
        """Forget the file, and what was written to it."""
        with suppress(Exception):
            self.writer.close()
        _hidden(self.path).unlink(missing_ok=True)

    def _write_group(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self._group, SCHEMA))
        self._group, self._characters = [], 0


def row(answered: Answered, text: bool) -> dict[str, Any]:
    """A record as plain values by column."""
    routing, tokens = answered.routing, max(answered.routing.tokens if answered.routing else 0, 1)
    values = {name: getattr(answered, name, None) for name in SCHEMA.names}
    return values | {
        "routed_tokens": routing and routing.tokens,
        "experts": routing
        and [
            {
                "layer": layer.layer,
                "load": layer.load,
                "entropy": layer.entropy / tokens,
                "margin": layer.margin / tokens,
            }
            for layer in routing.layers
        ],
        "prompt": _storable(answered.prompt) if text else None,
        "answer": _storable(answered.answer) if text else None,
    }


def _storable(text: str | None) -> str | None:
    """JSON may hold half a surrogate pair, which no file of text can."""
    return text and text.encode(errors="replace").decode()


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
