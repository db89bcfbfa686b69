"""Writes the pages that the code itself says: python -m docs.generate."""

from collections.abc import Callable, Mapping
from pathlib import Path

from docs.generate import cli, jobs

PAGES: Mapping[str, Callable[[], str]] = {"jobs.md": jobs.page, "cli.md": cli.page}
FOLDER = Path(__file__).resolve().parents[1]
_NOTE = "<!-- Written by `make docs`, out of the code; edit that instead. -->\n\n"


def text(name: str) -> str:
    """A page, whole."""
    return _NOTE + PAGES[name]()


if __name__ == "__main__":
    for name in PAGES:
        (FOLDER / name).write_text(text(name))
