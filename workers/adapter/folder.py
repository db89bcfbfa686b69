"""The folder of an adapter: its files, opened without tricks and written whole. No torch."""

import errno
import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

from workers.config.base import InputError, StorageError

WEIGHTS = "adapter_model.safetensors"
INDEXES = ("adapter_model.safetensors.index.json", "model.safetensors.index.json")
"""Of weights in several files, as other tools write them; transformers calls it after a model's."""
PICKLED = "adapter_model.bin"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
_SHARD = re.compile(r"adapter_model-\d{5}-of-\d{5}\.safetensors")
FILES = (WEIGHTS, PICKLED, CONFIG, MANIFEST)
LEFT_SECONDS = 86400
"""What nobody has written to for so long before, a killed process has left."""


class WriteError(StorageError):
    """A folder could not be written: the disk is full, or the place is not ours."""


def existing(path: str | Path) -> Path:
    """The folder at `path`; an InputError where there is none."""
    try:
        found = os.path.isdir(path)
    except ValueError:  # a null byte
        found = False
    if not found:
        raise InputError(f"{path}: there is no such adapter folder")
    return Path(path)


def member(folder: Path, name: str) -> Path | None:
    """One file of the folder, None where it is missing. Links are refused: an adapter that comes
    from outside must not make us read, hash or copy files from elsewhere."""
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if not S_ISREG(mode):
        raise InputError(f"{path}: is no regular file; links and devices are refused")
    return path


def shards(folder: Path) -> dict[str, list[str]]:
    """Files that the weights lie in one part each, and the tensors that their index says are in
    each; none where there is no index. A name that is none of a part, a path say, is refused."""
    index = next(filter(None, (member(folder, name) for name in INDEXES)), None)
    if index is None:
        return {}
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: must have a weight_map of tensors to files")
    found: dict[str, list[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise InputError(f"{index}: {name!r:.80} is no part of {WEIGHTS}")
        found.setdefault(name, []).append(tensor)
    return found


def required(folder: Path, name: str) -> Path:
    """One file of the folder, which must be there."""
    path = member(folder, name)
    if path is None:
        raise InputError(f"{folder}: has no {name}")
    return path


def refuse_pickles(folder: Path) -> None:
    """A folder whose weights are a pickle alone is imported by an act of its own."""
    if member(existing(folder), WEIGHTS) or shards(folder) or not member(folder, PICKLED):
        return
    raise InputError(
        f"{folder}: has its weights as {PICKLED} alone, which is a pickle; make a folder without "
        f"one first: moetune adapter import {folder} --to NEW"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; NaN and Infinity are no JSON."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a mapping, not a {type(values).__name__}")
    return values


def write_json(path: Path, values: Any, sort: bool = False) -> None:
    """Write `values` as JSON that a person can read and `read_json` accepts."""
    text = json.dumps(values, indent=2, allow_nan=False, sort_keys=sort)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which takes its place at the end or vanishes.

    A new adapter appears in one rename. One that replaces another needs two, since no portable
    call swaps folders: a reader in between finds no folder, but never a mixture.
    """
    _refuse_strangers(folder)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        sync(temporary)
        _put(temporary, folder)
        sync_names(folder.parent)
        sweep(folder, f".{glob.escape(folder.name)}.*")
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _refuse_strangers(folder: Path) -> None:
    """Replacing a folder removes what it held, so it may only hold an adapter's files."""
    try:
        strangers = sorted({entry.name for entry in folder.iterdir()} - set(FILES))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    if strangers:
        raise InputError(f"{folder}: holds other files ({strangers[0]}); name a new folder")


def sync(folder: Path) -> None:
    """Bring all files below to the disk, before the rename that makes them visible."""
    for path in folder.iterdir():
        if path.is_dir():
            sync(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_names(folder)


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


def sweep(made: Path, remains: str) -> None:
    """Remove what killed writers left beside `made`, which was made a moment ago: what matches and
    has not been written to for a day before, by the filesystem's own clock."""
    for path in made.parent.glob(remains):
        with suppress(OSError):  # another process sweeps too
            if path.stat().st_mtime < made.stat().st_mtime - LEFT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _put(new: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(new, folder)
        return
    old = new.with_name(f"{new.name}.old")  # unlike what a killed writer may have left here
    os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
