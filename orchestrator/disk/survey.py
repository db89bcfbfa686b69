"""What lies in a storage folder, and what of it may go: nothing that anybody needs."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from cluster.running import abandoned
from orchestrator.auth.made_keys import MARK
from orchestrator.config.cluster import ClusterSpec
from orchestrator.disk.left_overs import is_old, left_over
from orchestrator.disk.study_use import running_item, study_items
from orchestrator.disk.use import Item, entries
from orchestrator.registry.registry import Registry
from orchestrator.tuning.lifecycle import idle
from orchestrator.tuning.storage import database_file
from orchestrator.tuning.study import Study, all_studies
from orchestrator.tuning.study_folder import is_anothers
from workers.config.base import InputError
from workers.data.store.cache import COMPILED_FOLDER, cache_root
from workers.data.store.entries import ROWS_FOLDER, Cache
from workers.run.files import DELETED, delete

_OTHERS = {
    "audit": ("audit log", "of the endpoint's requests"),
    "watch": ("watches", "what `moetune watch` has done"),
}
_KILLED = "of processes that were killed"


class _Registered(NamedTuple):
    """What the registry knows."""

    versions: dict[str, Path]
    """Their folders, by id."""
    led_to: int
    """Versions that names lead to."""


def survey(place: ClusterSpec, unfinished: bool = False) -> list[Item]:
    """All that is there. `unfinished`: see `study_items`. Changes nothing."""
    known, of_studies, ours = _known(place), [], set()
    for study in _studies(place):
        with _of_study(place, study, unfinished) as items:
            of_studies += items
        ours.add(study.name)
    folder = Path(place.storage).resolve() / "studies"
    strange = tuple(path for path in entries(folder) if path.name not in ours)
    others = Item("other studies", "this store does not know them", strange)
    return [item for item in (*of_studies, others, *_apart(place, known)) if item.paths]


def clean(place: ClusterSpec, unfinished: bool = False) -> None:
    """Delete what may go, as it is now; of a study only while it is kept from being run."""
    _remove(_apart(place, _known(place)))
    for study in _studies(place):
        with _of_study(place, study, unfinished) as items:
            _remove(items)


def _remove(items: Iterable[Item]) -> None:
    for path in (path for item in items if item.goes for path in item.paths):
        delete(path)


def _apart(place: ClusterSpec, known: _Registered) -> list[Item]:
    """What is no study's."""
    folder = Path(place.storage).resolve()
    return [*_versions(folder / "versions", known), *_others(folder), *_of_machine()]


def _studies(place: ClusterSpec) -> list[Study]:
    """Those whose folders are not another store's, in which they may be running."""
    return [one for one in all_studies(place) if not is_anothers(one.folder, one.optuna)]


@contextmanager
def _of_study(place: ClusterSpec, study: Study, unfinished: bool) -> Iterator[list[Item]]:
    """A study's items. Unless somebody runs it, nobody does until the block ends: what its trials
    have registered is known then."""
    with idle(place, study.name) as nobody:
        if nobody:
            yield study_items(study, _known(place).versions, unfinished)
        else:
            yield [running_item(study)]


def _known(place: ClusterSpec) -> _Registered:
    """A SQLite file that is not there is not made."""
    file = database_file(place)
    if file and not file.exists():
        return _Registered({}, 0)
    with closing(Registry(place.store_url(), place.storage)) as registry:
        versions = {version.id: version.folder for version in registry.versions()}
        states = registry.rollouts().values()
    return _Registered(
        versions, len({id for state in states for id in state.line} & versions.keys())
    )


def _versions(folder: Path, known: _Registered) -> Iterator[Item]:
    rows = {path.name for path in known.versions.values()}
    there = [path for path in entries(folder) if not path.name.startswith(".")]
    mine = tuple(path for path in there if path.name in rows)
    yield Item("versions", f"{len(mine)}, names lead to {known.led_to}", mine)
    others = tuple(path for path in there if path.name not in rows)
    yield Item("other versions", "this store does not know them", others)
    hidden = [path for path in entries(folder) if path.name.startswith(".")]
    left = tuple(path for path in hidden if left_over(path, "versions"))
    yield Item("left-overs", _KILLED, left, goes=True)
    fresh = tuple(path for path in hidden if path not in left)
    yield Item("new versions", "somebody makes them, perhaps", fresh)


def _others(folder: Path) -> Iterator[Item]:
    rest, left = [], tuple(_watched_left(folder / "watch"))
    for path in entries(folder):
        if path.name in _OTHERS:
            yield Item(*_OTHERS[path.name], (path,), without=left)
        elif path.name not in ("versions", "studies"):
            rest.append(path)
    database = tuple(path for path in rest if path.name.startswith(("moetune.db", MARK)))
    yield Item("database", "studies, names and keys", database)
    left += tuple(path for path in rest if left_over(path, "storage"))
    yield Item("left-overs", _KILLED, left, goes=True)
    yield Item("other files", "not known here", tuple(set(rest) - {*database, *left}))


def _watched_left(folder: Path) -> Iterator[Path]:
    """Left-overs where watches write rows: in a folder for each training of each name."""
    for training in (training for name in entries(folder) for training in entries(name)):
        yield from (path for path in entries(training) if left_over(path, "watched rows"))


def _of_machine() -> Iterator[Item]:
    """What commands leave on this machine, whatever the storage folder."""
    yield Item("local clusters", _KILLED, tuple(abandoned()), goes=True)
    temporary = Path(tempfile.gettempdir())
    found = [path for name in ("moetune-job-", DELETED) for path in temporary.glob(f"{name}*")]
    staged = tuple(path for path in found if _is_our_old(path))
    yield Item("submitted jobs", _KILLED, staged, goes=True)
    yield from _encoded_rows()
    yield from _compiled_layers()


def _compiled_layers() -> Iterator[Item]:
    with suppress(InputError):  # no cache, none of them
        there = entries(cache_root() / COMPILED_FOLDER)
        old = tuple(path for path in there if _is_our_old(path))
        yield Item("compiled layers", "of runs here; compiled anew when needed", old, goes=True)
        new = tuple(path for path in there if path not in old)
        yield Item("compiled layers", "a run may just have made them", new)


def _encoded_rows() -> Iterator[Item]:
    with suppress(InputError, OSError):  # no cache, no rows
        if (folder := cache_root() / ROWS_FOLDER).is_dir():
            cache = Cache(folder)
            unused = tuple(cache.unused())
            yield Item("encoded rows", "of runs here; encoded anew when needed", unused, goes=True)
            used = tuple(path for *_, path in cache.entries() if path not in unused)
            yield Item("encoded rows", "a run reads them", used)
            yield Item("encoded rows", _KILLED, tuple(cache.left()), goes=True)


def _is_our_old(path: Path) -> bool:
    with suppress(OSError):
        return path.lstat().st_uid == os.getuid() and is_old(path)
    return False
