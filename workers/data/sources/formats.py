"""The formats of files, by how their names end."""

from collections.abc import Sequence
from dataclasses import dataclass

from workers.data.sources.columnar import arrow_records, parquet_records
from workers.data.sources.delimited import csv_records, tsv_records
from workers.data.sources.json_text import json_records, line_records
from workers.data.sources.record import PACKED, Reader


@dataclass(frozen=True)
class Format:
    """How files of a format are called and read."""

    name: str
    endings: Sequence[str]
    read: Reader
    may_be_packed: bool = True

    @property
    def all_endings(self) -> tuple[str, ...]:
        """Also of packed files."""
        packed = tuple(PACKED) if self.may_be_packed else ()
        return (*self.endings, *(one + end for one in self.endings for end in packed))


FORMATS = (
    Format("Parquet", (".parquet", ".pq"), parquet_records, may_be_packed=False),
    Format("JSON lines", (".jsonl", ".ndjson"), line_records),
    Format("JSON", (".json",), json_records),
    Format("CSV", (".csv",), csv_records),
    Format("TSV", (".tsv",), tsv_records),
    Format("Arrow", (".arrow", ".feather", ".ipc"), arrow_records, may_be_packed=False),
)
ENDINGS = tuple(ending for one in FORMATS for ending in one.all_endings)
ALLOWED = (
    f"{', '.join(ending for one in FORMATS for ending in one.endings)} (of text also with "
    f"{' or '.join(PACKED)})"
)
"""How a name may end, for messages."""


def is_known(path: str) -> bool:
    """Whether a file of such a name can be read. `ROWS.JSONL` is as good as `rows.jsonl`."""
    return path.lower().endswith(ENDINGS)


def reader(path: str) -> Reader:
    """What reads a file of such a name."""
    return next(one.read for one in FORMATS if path.lower().endswith(one.all_endings))
