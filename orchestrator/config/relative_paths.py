"""Relative paths in a file: they begin at that file's folder, wherever the command runs."""

import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

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
JOB_STORES = ("cluster.store",)
"""Those that are SQLAlchemy URLs, of which SQLite's may hold a path."""
_SQLITE_BESIDE_US = re.compile(r"(?P<scheme>sqlite(\+\w+)?:///)(?!/|:memory:|file:)(?P<path>[^?]+)")


def beside(
    folder: Path,
    values: dict[str, Any],
    paths: Iterable[str],
    names: Iterable[str] = (),
    stores: Iterable[str] = (),
) -> dict[str, Any]:
    """A file's values with its paths as the process takes them; absolute ones and URIs stay."""

    def path(written: str) -> str:
        return written if elsewhere(written) else str(folder / written)

    def name(written: str) -> str:
        return path(written) if (folder / written).exists() else written

    def store(written: str) -> str:
        return sqlite_placed(written, folder.joinpath)

    told = deepcopy(values)
    for fields, change in ((paths, path), (names, name), (stores, store)):
        for field in fields:
            _change(told, field, change)
    return told


def sqlite_placed(url: str, place: Callable[[str], Path]) -> str:
    """A SQLAlchemy URL where the relative path of a SQLite file is what `place` makes of it, quoted
    as SQLAlchemy reads it. Any other URL stays."""
    return _SQLITE_BESIDE_US.sub(
        lambda found: f"{found['scheme']}{quote(str(place(unquote(found['path']))))}", url, count=1
    )


def elsewhere(path: str) -> bool:
    """Whether it is the place of something that is no file of the machine's."""
    return "://" in path or path.startswith("hub:")


def _change(values: dict[str, Any], field: str, change: Callable[[str], str]) -> None:
    *parents, leaf = field.split(".")
    place: Any = values
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if isinstance(place, dict) and isinstance(place.get(leaf), str):
        place[leaf] = change(place[leaf])
