"""How files come to be whole or not there, whenever their writer is killed. Readable without torch.

What is being written has a hidden name beside its own, `.NAME.` and 32 random digits, until it is
complete: a reader finds all of it or what was there before. By that name `moetune clean` knows what
a killed writer has left (orchestrator.disk.left_overs). Durable writes also outlive a loss of
power: they return when the disk has them. Whoever promises something by a file writes it so.

Folders are the same in workers.run.folders, and files that grow in workers.run.json_lines.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

LEFT_SECONDS = 86400
"""What nobody has written to for so long, a killed process has left."""
DELETED = ".moetune-deleted-"
"""How the name begins of what is being deleted, wherever it lay."""


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a whole file or nothing; one that is there is replaced."""
    with new_file(path, durable=durable) as file:
        file.write(text.encode())


def write_once(path: Path, text: str) -> None:
    """Write a whole file, durably, unless there is one: of several writers the first counts."""
    temporary = beside(path)
    try:
        with _created(temporary, durable=True) as file:
            file.write(text.encode())
        _link(temporary, path)
    finally:
        _drop(temporary)
    sync_names(path.parent)


@contextmanager
def new_file(
    path: Path, *, durable: bool = False, mode: int = 0o666, hidden: Path | None = None
) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` at the end, or vanishes. `hidden`: its
    name until then, where the writer has one of its own."""
    temporary = hidden or beside(path)
    try:
        with _created(temporary, durable, mode) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        _drop(temporary)
        raise
    if durable:
        sync_names(path.parent)


def delete(path: Path) -> None:
    """Delete a file or a folder, if it is there. It loses its name first: who looks finds all of it
    or nothing."""
    gone = path.with_name(f"{DELETED}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        os.replace(path, gone)
        sync_names(path.parent)
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone)
        else:
            gone.unlink()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does; yields whether we do. The system lets go of it
    when the process dies; the file stays. Whoever holds it may delete it. OSError where the
    filesystem has no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield lock_descriptor(file.fileno(), blocking=False) and _has_name(file.fileno(), path)


def _has_name(file: int, path: Path) -> bool:
    """Whether an open file is the one of that name. A lock on one that was deleted meanwhile keeps
    nobody out: the next one makes a new file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def sync_names(folder: Path) -> None:
    """Bring a folder's names to the disk: else a rename may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # filesystems that know no such thing
            raise
    finally:
        os.close(handle)


def beside(path: Path) -> Path:
    """A hidden name, for the time of the making."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def _created(path: Path, durable: bool, mode: int = 0o666) -> Iterator[BinaryIO]:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        yield file
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _link(made: Path, path: Path) -> None:
    """Give a file a further name, unless another one has it."""
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:  # a filesystem without hard links, where the last of two at once stays
        if not path.exists():
            os.replace(made, path)


def _drop(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
