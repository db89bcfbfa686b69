"""The folder of an adapter: its files, opened without tricks and written whole. No torch."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

from workers.config.base import InputError, StorageError, one_line
from workers.run.folders import new_folder

WEIGHTS = "adapter_model.safetensors"
INDEXES = ("adapter_model.safetensors.index.json", "model.safetensors.index.json")
"""Of weights in several files, as other tools write them; transformers calls it after a model's."""
PICKLED = "adapter_model.bin"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
CHAT_TEMPLATE = "chat_template.jinja"
"""An adapter's own chat template, for other tools; ours read it in the manifest."""
_SHARD = re.compile(r"adapter_model-\d{5}-of-\d{5}\.safetensors")
FILES = (WEIGHTS, PICKLED, CONFIG, MANIFEST)


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
    found: dict[str, list[str]] = {}
    for tensor, name in weight_map(index).items():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise InputError(f"{index}: {name!r:.80} is no part of {WEIGHTS}")
        found.setdefault(name, []).append(tensor)
    return found


def weight_map(index: Path) -> dict[str, Any]:
    """What an index says that each tensor's file is called, which may be anything."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: must have a weight_map of tensors to files")
    return places


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
        raise InputError(f"{path}: is no JSON: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a mapping, not a {type(values).__name__}")
    return values


def write_json(path: Path, values: Any, sort: bool = False) -> None:
    """Write `values` as JSON that a person can read and `read_json` accepts."""
    text = json.dumps(values, indent=2, allow_nan=False, sort_keys=sort)
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of the adapter `folder` at the end, or
    vanishes."""
    _refuse_strangers(folder)
    try:
        with new_folder(folder) as new:
            yield new
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _refuse_strangers(folder: Path) -> None:
    """Replacing a folder removes what it held, so it may only hold an adapter's files."""
    try:
        strangers = sorted({entry.name for entry in folder.iterdir()} - {*FILES, CHAT_TEMPLATE})
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    if strangers:
        raise InputError(f"{folder}: holds other files ({strangers[0]}); name a new folder")
