"""Relative paths in a file: they begin at that file's folder, wherever the command runs."""

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from os.path import expanduser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from search_spaces.parameters import TRAINING_ROWS
from workers.config.chat_template import is_template

JOB = (
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


def placed(folder: Path, written: str) -> str:
    """A path that is written in a file of this folder; ~ is the home, as in a shell."""
    return written if elsewhere(written) else str(folder / expanduser(written))


def with_sources(space: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A search space with each of the sources that it names changed."""
    return {n: _sources(one, change) if n == TRAINING_ROWS else one for n, one in space.items()}


def _sources(value: Any, change: Callable[[str], str]) -> Any:
    """One, a list of them, or a range of such."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_sources(one, change) for one in value]
    if isinstance(value, Mapping):
        names = ("source", "choice")
        return {n: _sources(one, change) if n in names else one for n, one in value.items()}
    return value


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
