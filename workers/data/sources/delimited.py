"""Records out of CSV and TSV files. Every cell is text, as it is written."""

import csv
from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from workers.config.base import InputError, one_line
from workers.data.sources.record import File, Records, Wanted, lines_of, unreadable
from workers.data.values import repeated

LONGEST_CELL = 2**24
"""Characters. A quote that is never closed makes one cell of all that follows."""


def _records(dialect: str, format: str, file: File, wanted: Wanted) -> Records:
    number = 1
    csv.field_size_limit(LONGEST_CELL)  # Python's own is 128 KiB: less than a long document
    try:
        with file.lines() as stream:
            rows = csv.reader(_text(lines_of(stream, file.path), file.path), dialect, strict=True)
            names = next(rows, [])
            columns = _columns(file, format, names, wanted)
            number = rows.line_num + 1
            for row in rows:
                where = f"{file.path}: line {number}"
                if row:  # else the line is empty
                    _check_length(row, names, where)
                    yield where, {name: row[at] for name, at in columns.items()}
                number = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file.path}: line {number}: cannot be read: {one_line(error)}") from None
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, format, one_line(error)) from None


csv_records = partial(_records, "excel", "CSV")
tsv_records = partial(_records, "excel-tab", "TSV")


def _text(lines: Iterator[bytes], path: str) -> Iterator[str]:
    """Each line apart, so that one that is no UTF-8 has its number."""
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}: line {number}: is no UTF-8") from None


def _columns(file: File, format: str, names: list[str], wanted: Wanted) -> dict[str, int]:
    """The columns to read, and where they stand."""
    if not any(names):
        raise unreadable(file, format, "its first line must name the columns")
    if (twice := repeated(names)) is not None:
        raise InputError(f"{file.path}: has two columns {twice!r}")
    return {name: names.index(name) for name in wanted(file.path, names)}


def _check_length(row: list[str], names: list[str], where: str) -> None:
    if len(row) != len(names):
        raise InputError(
            f"{where}: has {len(row)} cells, but the first line names {len(names)} columns; a cell "
            "with a delimiter, a line end or a quote in it stands in double quotes"
        )
