"""What commands print: JSON for scripts, tables and a model's text for people."""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from orchestrator.monitoring.format import plain


def print_json(value: Any) -> None:
    """Print one JSON document; times and paths as text."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print a table; on a terminal that is too narrow for it, each row as `column value · …`.
    Numbers have four digits, times end with the second."""
    columns, cells = [*map(plain, columns)], [[*map(_text, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if title:
        print(plain(title))
    if room and sum(widths) + 2 * (len(widths) - 1) > room:
        return print("\n".join(_record(columns, row, room) for row in cells))
    for row in (columns, *cells):
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return None


def _record(columns: Sequence[str], row: Sequence[str], room: int) -> str:
    said = " · ".join(f"{name} {cell}".strip() for name, cell in zip(columns, row, strict=True))
    return textwrap.fill(said, room, subsequent_indent="    ", break_on_hyphens=False)


def _text(value: Any) -> str:
    """One line, whatever it is: reasons and names are text of people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}".rstrip()
    return "-" if value is None else plain(str(value))


def plain_answer(text: str) -> str:
    """A model's text for the terminal, which must not obey it; for a pipe as it is."""
    return plain(text, kept="\n\t") if sys.stdout.isatty() else text
