"""Relative paths in a file: they begin at that file's folder, wherever the command runs."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

JOB = (
    "train.data.train",
    "train.data.validation",
    "train.checkpoint.upload",
    "cluster.storage",
    "serve.tls.cert",
    "serve.tls.key",
    "serve.audit.folder",
)
"""Fields of a job file that are paths."""
JOB_NAMES = ("train.model.path", "search.space")
"""Those that may be names too, of the hub or of a preset: a path only where there is a file."""


def beside(
    folder: Path, values: dict[str, Any], paths: Iterable[str], names: Iterable[str] = ()
) -> dict[str, Any]:
    """A file's values with its paths as the process takes them; absolute ones and URIs stay."""
    told = deepcopy(values)
    for field in paths:
        _change(told, field, folder, must_exist=False)
    for field in names:
        _change(told, field, folder, must_exist=True)
    return told


def elsewhere(path: str) -> bool:
    """Whether it is the place of something that is no file of the machine's."""
    return "://" in path or path.startswith("hub:")


def _change(values: dict[str, Any], field: str, folder: Path, *, must_exist: bool) -> None:
    *parents, leaf = field.split(".")
    place: Any = values
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    written = place.get(leaf) if isinstance(place, dict) else None
    if not isinstance(written, str) or elsewhere(written):
        return
    if not must_exist or (folder / written).exists():
        place[leaf] = str(folder / written)
