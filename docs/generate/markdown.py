"""Markdown as GitHub shows it."""

import re
from collections.abc import Sequence


def anchor(heading: str) -> str:
    """What a link to a heading says behind its #."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a | in a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *([_cell(one) for one in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
