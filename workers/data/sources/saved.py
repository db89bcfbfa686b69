"""The files of a folder that `save_to_disk` of the `datasets` package wrote."""

import json
from posixpath import join
from typing import Any

from pyarrow import fs

from workers.config.base import InputError

_DATASET, _SPLITS = "state.json", "dataset_dict.json"
_DEFAULT = "train"


def saved_files(filesystem: fs.FileSystem, folder: str, split: str | None) -> list[str] | None:
    """Its Arrow files in order, of one split where it has several (`train` where none is named);
    None for a folder of another kind. InputError where it is damaged, or lacks the split."""
    splits = _read(filesystem, join(folder, _SPLITS))
    if splits is not None:
        return _of_split(filesystem, folder, _listed(splits, "splits", folder), split)
    state = _read(filesystem, join(folder, _DATASET))
    if state is None:
        return None
    if split:
        raise InputError(f"{folder}: is one data set, without a split {split!r}")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"{folder}: is of an old version of datasets; save it anew")
    files = _listed(state, "_data_files", folder)
    return [_inside(folder, one.get("filename") if isinstance(one, dict) else one) for one in files]


def _of_split(
    filesystem: fs.FileSystem, folder: str, splits: list[Any], split: str | None
) -> list[str] | None:
    name = split or _DEFAULT
    if name not in splits:
        known = ", ".join(map(str, splits))
        raise InputError(
            f"{folder}: has no split {name!r}; write {folder}#SPLIT with one of {known}"
        )
    return saved_files(filesystem, _inside(folder, name), None)


def _inside(folder: str, name: Any) -> str:
    """What a description calls so; it may come from anywhere, and names nothing outside."""
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        raise _damaged(folder)
    return join(folder, name)


def _read(filesystem: fs.FileSystem, path: str) -> dict[str, Any] | None:
    """What a description says; None where there is none."""
    if not filesystem.get_file_info(path).is_file:
        return None
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            values = json.loads(stream.read())
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {}


def _listed(values: dict[str, Any], name: str, folder: str) -> list[Any]:
    found = values.get(name)
    if not isinstance(found, list):
        raise _damaged(folder)
    return found


def _damaged(folder: str) -> InputError:
    return InputError(f"{folder}: its description by save_to_disk is damaged; save it anew")
