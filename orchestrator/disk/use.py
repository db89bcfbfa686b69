"""What takes how much disk, and how it goes."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = 512
"""What `st_blocks` counts in, whatever the file system's own blocks are."""


@dataclass(frozen=True)
class Item:
    """Something on disk, and whether it may go."""

    what: str
    why: str
    """That it stays, or may go."""
    paths: tuple[Path, ...]
    goes: bool = False
    study: str | None = None
    """Whose it is: it goes only while nobody runs that study."""
    without: tuple[Path, ...] = ()
    """Parts below the paths that are items of their own."""


class Use(NamedTuple):
    """An item, and the bytes that it takes."""

    item: Item
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        item = self.item
        paths = [str(path) for path in item.paths]
        return {
            "what": item.what.strip(),
            "study": item.study,
            "bytes": self.bytes,
            "goes": item.goes,
            "why": item.why,
            "paths": paths,
        }


def measured(items: Sequence[Item]) -> list[Use]:
    """The items with their bytes. A file that has several names is counted once, by an item that
    stays if there is one: so what may go frees what is said."""
    seen: set[tuple[int, int]] = set()
    counted = {id(item): _bytes(item, seen) for item in sorted(items, key=lambda item: item.goes)}
    return [Use(item, counted[id(item)]) for item in items]


def entries(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing where there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _bytes(item: Item, seen: set[tuple[int, int]]) -> int:
    total = 0
    for path in item.paths:
        for stat in _stats(path, frozenset(item.without)):
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                total += stat.st_blocks * _BLOCK
    return total


def _stats(path: Path, without: Collection[Path]) -> Iterator[os.stat_result]:
    """Of a file, or of a folder and all below it but for some paths; links are not followed."""
    if path in without:
        return
    with suppress(FileNotFoundError):  # somebody else has deleted it just now
        yield path.lstat()
        if path.is_dir() and not path.is_symlink():
            for below in entries(path):
                yield from _stats(below, without)
