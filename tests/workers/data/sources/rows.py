"""Rows, written in every format."""

import csv
import gzip
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO, StringIO
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from workers.data.sources.record import UnknownColumnsError
from workers.data.sources.records import records

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"prompt": f"p{at}", "target": f'"t{at}", ä\n\N{PARTY POPPER}', "other": str(at)}
    for at in range(5)
]


def all_columns(where: str, names: Collection[str]) -> Sequence[str]:
    """Those of what has one that these tests' rows have, and what holds rows has not."""
    if not {"a", "prompt", "target", "messages", "conversations"} & {*names}:
        raise UnknownColumnsError(f"{where}: no column 'prompt'; there are {', '.join(names)}")
    return sorted(names)


def read(source: str) -> Rows:
    return [dict(record) for _, record in records(source, all_columns)]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: Rows) -> bytes:
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def _arrow(rows: Rows, new: Callable[..., Any]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def _feather(rows: Rows) -> bytes:
    sink = BytesIO()
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), sink, compression="lz4")
    return sink.getvalue()


def _delimited(rows: Rows, dialect: str) -> bytes:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _zst(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


FILES: Mapping[str, Callable[[Rows], bytes]] = {
    "rows.parquet": _parquet,
    "rows.pq": _parquet,
    "rows.jsonl": lines,
    "rows.ndjson": lines,
    "rows.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "rows.jsonl.zst": lambda rows: _zst(lines(rows)),
    "list.json": lambda rows: json.dumps(rows).encode(),
    "indented.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "marked.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "object.json": lambda rows: json.dumps({"version": 1.25, "n": [1], "data": rows}).encode(),
    "open.json": lambda rows: json.dumps({"data": rows, "size": 12}, indent=1).encode(),
    "lines.json": lines,
    "spaced.json": lambda rows: b"\n" + lines(rows).replace(b"\n", b"\n\n"),
    "list.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "list.json.zst": lambda rows: _zst(json.dumps(rows).encode()),
    "rows.csv": lambda rows: _delimited(rows, "excel"),
    "unix.csv": lambda rows: _delimited(rows, "unix"),
    "marked.csv": lambda rows: b"\xef\xbb\xbf" + _delimited(rows, "excel"),
    "rows.csv.gz": lambda rows: gzip.compress(_delimited(rows, "excel")),
    "rows.csv.zst": lambda rows: _zst(_delimited(rows, "excel")),
    "rows.tsv": lambda rows: _delimited(rows, "excel-tab"),
    "rows.tsv.gz": lambda rows: gzip.compress(_delimited(rows, "excel-tab")),
    "file.arrow": lambda rows: _arrow(rows, pa.ipc.new_file),
    "stream.arrow": lambda rows: _arrow(rows, pa.ipc.new_stream),
    "rows.ipc": lambda rows: _arrow(rows, pa.ipc.new_file),
    "rows.feather": _feather,
}
"""What a file of this name holds."""
