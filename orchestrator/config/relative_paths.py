"""Relative paths in a file: they begin at that file's folder, wherever the command runs."""

import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from workers.config.chat_template import is_template
from workers.config.places import placed

JOB = (
    "train.start_from",
    "train.data.train",
    "train.data.train.*",
    "train.data.train.*.source",
    "train.data.validation",
    "train.data.chat_template",
    "train.checkpoint.upload",
    "cluster.storage",
    "serve.tls.cert",
    "serve.tls.key",
    "serve.audit.folder",
)
"""Fields of a job file that are paths; `*` stands for each of a list."""
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
        return written if is_template(written) else placed(folder, written)

    def name(written: str) -> str:
        return path(written) if Path(path(written)).exists() else written

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


def _change(values: dict[str, Any], field: str, change: Callable[[str], str]) -> None:
    *parents, leaf = field.split(".")
    places: list[Any] = [values]
    for parent in parents:
        places = [place[key] for place in places for key in _keys(place, parent)]
    for place in places:
        for key in _keys(place, leaf):
            if isinstance(place[key], str):
                place[key] = change(place[key])


def _keys(place: Any, part: str) -> Iterable[Any]:
    """Where a part of a field's name is found in a value."""
    if isinstance(place, list):
        return range(len(place)) if part == "*" else ()
    return (part,) if isinstance(place, dict) and part in place else ()
