"""What of a study takes how much disk, and what of it nobody needs."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.disk.left_overs import FolderKind, left_over
from orchestrator.disk.use import Item, entries
from orchestrator.tuning.study import TRAINED_ON, Study, trial_name

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_STATE = ("checkpoints", "group")
"""Of a trial's folder: what its run goes on from, our checkpoints and Ray Train's own record."""


def study_items(study: Study, versions: Mapping[str, Path], unfinished: bool) -> list[Item]:
    """A study that nobody runs: the parts that may go, those that are needed, and the rest.

    `versions`: folders of the registry's versions by id. With `unfinished` what a trial that was
    cut off would go on from may go too.
    """
    trials = {trial_name(t.number): t for t in study.optuna.get_trials(deepcopy=False)}
    folders = [path for path in entries(study.folder / "trials") if path.name in trials]
    ended = [path for path in folders if trials[path.name].state.is_finished()]
    parts = [
        _item(study, "checkpoints", "the trials have ended", _state(ended)),
        _cut_off(study, _state(path for path in folders if path not in ended), unfinished),
        _item(study, "Ray Tune's files", "of sessions that have ended", [study.folder / "tune"]),
        *_adapters(study, {path: trials[path.name] for path in ended}, versions),
    ]
    taken = [path for part in parts for path in part.paths]
    left = _left_overs(study.folder, [path for part in parts if part.goes for path in part.paths])
    parts.append(_item(study, "left-overs", "of processes that were killed", left))
    rest = Item(
        f"study {study.name}",
        f"records of {len(trials)} trials, adapters",
        (study.folder,),
        study=study.name,
        without=(*taken, *left),
    )
    return [rest, *(part for part in parts if part.paths)]


def running_item(study: Study) -> Item:
    """A study that a process runs: all of it stays."""
    return Item(f"study {study.name}", "it is running", (study.folder,), study=study.name)


def _item(study: Study, what: str, why: str, paths: Collection[Path]) -> Item:
    there = tuple(path for path in paths if path.exists())
    return Item(f"  {what}", why, there, goes=True, study=study.name)


def _cut_off(study: Study, paths: Collection[Path], unfinished: bool) -> Item:
    if unfinished:
        why = "asked for: --resume begins these trials anew"
        return _item(study, "unfinished trials", why, paths)
    why = "--resume goes on from them"
    there = tuple(path for path in paths if path.exists())
    left = tuple(_left_overs(study.folder, []))
    return Item("  unfinished trials", why, there, study=study.name, without=left)


def _adapters(
    study: Study, ended: "Mapping[Path, FrozenTrial]", versions: Mapping[str, Path]
) -> list[Item]:
    """Adapters in the folders of trials that have ended. What has failed stays: somebody may want
    to look at it."""
    twice, dropped, stopped = [], [], []
    for folder, trial in ended.items():
        adapter, version = folder / "adapter", trial.user_attrs.get("version")
        if trial.state.name == "PRUNED":
            stopped.append(adapter)
        elif version and version not in versions:
            dropped.append(adapter)
        elif version and _stands_twice(adapter, versions[version]):
            twice.append(adapter)
    return [
        _item(study, "copied adapters", "their versions have the same files", twice),
        _item(study, "dropped adapters", "their versions were deleted", dropped),
        _item(study, "stopped trials", "their adapters became no versions", stopped),
    ]


def _stands_twice(adapter: Path, version: Path) -> bool:
    """Whether the version has the same weights in a file of its own."""
    from workers.adapter.digest import file_digest
    from workers.adapter.folder import WEIGHTS

    own, theirs = adapter / WEIGHTS, version / WEIGHTS
    if not own.is_file() or not theirs.is_file() or own.samefile(theirs):
        return False
    same_size = own.stat().st_size == theirs.stat().st_size
    return same_size and file_digest(own) == file_digest(theirs)


def _state(folders: Iterable[Path]) -> list[Path]:
    return [folder / name for folder in folders for name in _STATE]


def _left_overs(folder: Path, gone: Collection[Path]) -> list[Path]:
    """Of killed processes, where they write in a study's folder; but for what goes as a whole."""
    places: list[tuple[Path, FolderKind]] = [(folder, "study"), (folder / "inputs", "inputs")]
    for run in (*entries(folder / "trials"), folder / TRAINED_ON):
        places += (
            (run, "run"),
            (run / "ranks", "ranks"),
            (run / "checkpoints", "checkpoints"),
        )
    there = [(path, kind) for place, kind in places if place not in gone for path in entries(place)]
    return [path for path, kind in there if left_over(path, kind)]
