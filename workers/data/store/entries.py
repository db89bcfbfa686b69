"""Entries of the cache: folders that are whole or not there, made by one process for all of a node.

KEY/              an entry: `rows.arrow` and what its maker noted. Who reads it holds a shared lock
                  on that file, so that it is not deleted under it.
KEY.lock          held by who makes the entry; the system lets go of it when that process dies
.KEY.DIGITS/      an entry in the making; where nobody holds the lock, a killed process has left it
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from workers.config.base import InputError, one_line
from workers.data.store.cache import cannot_write
from workers.run.files import DELETED, delete, locked
from workers.run.folders import RANDOM, hidden_folder, settle

ROWS_FOLDER = "rows"
"""Where encoded rows are in the cache."""
ROWS = "rows.arrow"
log = logging.getLogger(__name__)
LOOK_SECONDS = 0.2
"""How often who waits looks whether another one has made the entry."""


class StoreEntry(NamedTuple):
    """An entry, which stays as long as `held` is open."""

    folder: Path
    held: BinaryIO


@dataclass(frozen=True)
class Cache:
    """A folder of entries."""

    folder: Path
    limit: int = 0
    """Bytes that entries may take together, but for those in use."""

    def opened(
        self, name: str, write: Callable[[Path], None], waiting: Callable[[], None]
    ) -> StoreEntry:
        """The entry of that name; where there is none, `write` fills its folder. One process does
        it, and others call `waiting` until it has, or until it is their turn. InputError where it
        cannot be written; what `write` raises leaves nothing behind."""
        while (found := _open(self.folder / name)) is None:
            with _turn(self.folder / f"{name}.lock") as mine:
                if mine:  # asked again: it may just be done
                    found = _open(self.folder / name) or self._made(name, write)
            if found:
                break
            waiting()
            time.sleep(LOOK_SECONDS)
        with suppress(OSError):
            os.utime(found.folder)
        return found

    def discard(self, entry: StoreEntry) -> None:
        """Delete an entry that is damaged. Who reads it keeps what is open. InputError."""
        entry.held.close()
        with _writing(self.folder):
            delete(entry.folder)

    def trim(self) -> None:
        """Delete what killed processes have left, and those entries that were used least recently
        until the others keep the limit; never one that is open."""
        self._sweep()
        taken = 0
        for _, size, entry in sorted(self.entries(), reverse=True):
            taken += size
            if taken > self.limit and _dropped(entry):
                taken -= size

    def entries(self) -> Iterator[tuple[float, int, Path]]:
        """When each was used last, its bytes, and its folder."""
        for folder in self.folder.iterdir():
            with suppress(OSError):
                if (folder / ROWS).is_file() and not folder.name.startswith("."):
                    yield folder.stat().st_mtime, _size(folder), folder

    def unused(self) -> Iterator[Path]:
        """Entries that nobody has open."""
        for _, _, entry in self.entries():
            with _alone(entry) as free:
                if free:
                    yield entry

    def left(self) -> Iterator[Path]:
        """What killed processes have left. Nobody begins to make such an entry until the caller
        asks for the next one."""
        yield from self.folder.glob(f"{DELETED}*")
        for making in self.folder.glob(f".*.{RANDOM}"):
            lock = self.folder / f"{making.name.split('.')[1]}.lock"
            if not lock.exists():  # whoever makes it has one; looking for it makes none
                yield making
                continue
            with suppress(OSError), locked(lock) as dead:  # without locks, nobody knows
                if dead:
                    yield making

    def _sweep(self) -> None:
        for left in self.left():
            shutil.rmtree(left, ignore_errors=True)

    def _made(self, name: str, write: Callable[[Path], None]) -> StoreEntry:
        with _writing(self.folder):
            with hidden_folder(self.folder, name) as new:
                write(new)
                held = (new / ROWS).open("rb")
                _share(held)
                _make_room(self.folder / name)
                settle(new, self.folder / name, keep=True)
            self._say_if_too_large(self.folder / name)
            self.trim()
        return StoreEntry(self.folder / name, held)

    def _say_if_too_large(self, folder: Path) -> None:
        if (size := _size(folder)) > self.limit:
            log.warning(
                f"{folder}: takes {size / 1e9:.3g} GB, more than the cache may (MOETUNE_CACHE_GB): "
                "its rows are encoded again once another entry was made"
            )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from None


def _make_room(folder: Path) -> None:
    """An entry that another one has made stays; anything else is none, and would hold its place."""
    if not (folder / ROWS).is_file():
        delete(folder)


def _open(folder: Path) -> StoreEntry | None:
    """None where there is no such entry, or one that is just being deleted. InputError where it
    cannot be read."""
    try:
        with ExitStack() as stack, suppress(FileNotFoundError, NotADirectoryError):
            held = stack.enter_context((folder / ROWS).open("rb"))
            if _share(held) and os.fstat(held.fileno()).st_nlink:
                stack.pop_all()
                return StoreEntry(folder, held)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read: {one_line(error)}; remove it, and it is made again"
        ) from None
    return None


def _share(file: BinaryIO) -> bool:
    """Say that we read it; False where somebody deletes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a filesystem without locks, where nothing is deleted
        pass
    return True


@contextmanager
def _turn(lock: Path) -> Iterator[bool]:
    """Whether it is this process's turn, until the end of the block."""
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(locked(lock))
        except OSError:  # a filesystem without locks, where several may make the same at once
            mine = True
        yield mine


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody reads the entry, nor will until the end of the block."""
    with ExitStack() as stack:
        try:
            held = stack.enter_context((folder / ROWS).open("r+b"))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _dropped(folder: Path) -> bool:
    """The lock goes too, but only while it is ours: without it, two would make the same entry."""
    lock = folder.with_name(f"{folder.name}.lock")
    with suppress(OSError), locked(lock) as ours, _alone(folder) as free:
        if ours and free:
            delete(folder)
            lock.unlink(missing_ok=True)
            return True
    return False
