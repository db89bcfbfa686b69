"""The files of a source, on any filesystem that pyarrow reads."""

from collections.abc import Iterable
from os.path import expanduser
from pathlib import Path

import pyarrow as pa
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from workers.config.base import InputError, one_line
from workers.data.sources.formats import ALLOWED, is_known
from workers.data.sources.record import File
from workers.data.sources.saved import saved_files

_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files beside rows that are about them, as `datasets` and LLaMA-Factory call theirs."""


def files(source: str) -> list[File]:
    """Those of a path, glob or folder, in alphabetical order; of a folder of `save_to_disk` in its
    own. InputError where there is none, or none of a known format."""
    try:
        filesystem, path = _place(source)
        paths = _matches(filesystem, path)
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{source}: cannot be read: {one_line(error)}") from None
    if not paths:
        raise InputError(f"{source}: no such file, and none matches it that ends in {ALLOWED}")
    if not all(map(is_known, paths)):
        raise InputError(f"{source}: is of no known format by its name; allowed are {ALLOWED}")
    return [File(filesystem, path) for path in paths]


def _place(source: str) -> tuple[fs.FileSystem, str]:
    if "://" in source:
        uri, mark, split = source.partition("#")  # a URI would lose it
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path + mark + split
    return fs.LocalFileSystem(), str(Path(expanduser(source)).absolute())


def _matches(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The file or the folder of this very name, even one with the marks of a glob or a split; else
    its matches."""
    info = filesystem.get_file_info(path)
    if info.is_file:
        return [path]
    if info.type == fs.FileType.Directory:
        return _of_folder(filesystem, path, None)
    folder, _, split = path.rpartition("#")
    if folder and filesystem.get_file_info(folder).type == fs.FileType.Directory:
        return _of_folder(filesystem, folder, split)
    return _known(ArrowFSWrapper(filesystem).glob(path))


def _of_folder(filesystem: fs.FileSystem, folder: str, split: str | None) -> list[str]:
    saved = saved_files(filesystem, folder, split)
    if saved is not None:
        return saved
    if split:
        raise InputError(f"{folder}: was not written by save_to_disk, and has no split {split!r}")
    return _known(entry.path for entry in filesystem.get_file_info(fs.FileSelector(folder)))


def _known(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if is_known(path) and Path(path).name not in _ABOUT)
