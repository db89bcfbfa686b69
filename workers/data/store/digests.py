"""Digests of files, remembered in the cache: else every trial would read all bytes again.

A digest counts as long as each of its files is the one that it was taken of: has the same size and
time and, on a disk, the same place and the time of the last change, which no program can set back.
It is not remembered where a file was written to a moment before: another change might have the very
same time.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pyarrow import fs

from workers.config.base import InputError
from workers.data.sources.record import File
from workers.data.store.cache import cache_folder
from workers.run.files import write_text

SETTLED_SECONDS = 2.0
"""So old must the last change of a file be: the clocks of filesystems tick."""
SETTLED_FAR_SECONDS = 60.0
"""The same in an object store, whose clock may be another one."""
OBJECT_STORES = ("s3", "gcs", "abfs")
"""Filesystems that say themselves when something was written; elsewhere whoever writes may."""
BLOCK = 2**20


def files_digest(source: str, files: Sequence[File], moving: Callable[[], None]) -> str:
    """SHA-256 over the bytes of all files of a source, one after another. `moving` is called again
    and again while they are read. Raises OSError."""
    began, facts = time.time(), [_facts(file) for file in files]
    known = _note(source, files) if all(facts) else None
    if known is None:
        return _read(files, moving)
    with suppress(OSError, ValueError, KeyError, TypeError):
        written = json.loads(known.read_text())
        if written["of"] == facts:
            return str(written["sha256"])
    digest = _read(files, moving)
    still = SETTLED_SECONDS if all(map(_is_local, files)) else SETTLED_FAR_SECONDS
    settled = all(max(one[:2]) < (began - still) * 1e9 for one in facts)
    if settled and facts == [_facts(file) for file in files]:
        with suppress(OSError):  # a full disk: it is taken again next time
            write_text(known, json.dumps({"of": facts, "sha256": digest}))
    return digest


def _read(files: Sequence[File], moving: Callable[[], None]) -> str:
    state = hashlib.sha256()
    for file in files:
        with file.filesystem.open_input_stream(file.path, compression=None) as stream:
            while block := stream.read(BLOCK):
                state.update(block)
                moving()
    return state.hexdigest()


def _facts(file: File) -> list[int]:
    """What any change would change, times first; nothing where that is not sure."""
    if _is_local(file):
        with open(file.path, "rb") as opened:  # so that a network's filesystem asks its server
            found = os.fstat(opened.fileno())
        times = [found.st_mtime_ns, found.st_ctime_ns]
        return [*times, found.st_size, found.st_ino, found.st_dev]
    if file.filesystem.type_name not in OBJECT_STORES:
        return []
    info = file.filesystem.get_file_info(file.path)
    return [info.mtime_ns, 0, info.size] if info.mtime_ns else []


def _note(source: str, files: Sequence[File]) -> Path | None:
    """Where the digest is kept; None without a cache."""
    names = [source, *(file.path for file in files)]
    key = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]
    with suppress(InputError):
        return cache_folder("digests") / f"{key}.json"
    return None


def _is_local(file: File) -> bool:
    return isinstance(file.filesystem, fs.LocalFileSystem)
