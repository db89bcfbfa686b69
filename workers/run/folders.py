"""Folders that are whole or not there, as workers.run.files has it of files. No torch.

All of a folder has reached the disk before it gets its name.
"""

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workers.run.files import LEFT_SECONDS, sync_names

RANDOM = "[0-9a-f]" * 32
"""Pattern of the digits in a hidden name."""


@contextmanager
def new_folder(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` at the end, or vanishes. With
    `keep`, one that another process has made meanwhile stays."""
    with hidden_folder(folder.parent, folder.name) as new:
        yield new
        settle(new, folder, keep=keep)
    sweep(folder, f".{glob.escape(folder.name)}.{RANDOM}*")


@contextmanager
def hidden_folder(parent: Path, name: str = "") -> Iterator[Path]:
    """A hidden folder in `parent`, which vanishes at the end unless it has got another name."""
    new = parent / ".".join(("", *filter(None, (name,)), uuid.uuid4().hex))
    new.mkdir(parents=True)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def settle(new: Path, folder: Path, *, keep: bool = False) -> None:
    """Rename a hidden folder to `folder`; with `keep`, one that is there stays.

    One that replaces another needs two renames, since no portable call swaps folders: a reader in
    between finds no folder, but never a mixture.
    """
    if keep and folder.is_dir():
        return
    sync(new)
    old = new.with_name(f"{new.name}.old")
    if not keep:
        with suppress(FileNotFoundError):
            os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if not (keep and folder.is_dir()):  # else: another process was faster
            with suppress(OSError):
                os.replace(old, folder)
            raise
    sync_names(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(folder: Path) -> None:
    """Bring all files below to the disk."""
    for path in folder.iterdir():
        if path.is_dir():
            sync(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_names(folder)


def sweep(made: Path, remains: str) -> None:
    """Remove what killed writers left beside `made`, which was made a moment ago: folders that
    match and have not been written to for a day before, by the filesystem's own clock."""
    for path in made.parent.glob(remains):
        with suppress(OSError):  # another process sweeps too
            if path.stat().st_mtime < made.stat().st_mtime - LEFT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def nearest(path: Path) -> Path:
    """What is there of a path that may yet be made: itself, or the lowest folder above it. Its disk
    is the one that the path would lie on."""
    place = path.resolve()
    while not place.exists():
        place = place.parent
    return place
