"""Folders are whole or not there."""

import os
from pathlib import Path

import pytest

from tests.workers.run.conftest import KILLS, Kill
from workers.run.folders import hidden_folder, nearest, new_folder

FILES = ("first", "second", "third")
WRITES = """
import shutil, sys
from itertools import count
from pathlib import Path
from workers.run.folders import new_folder
folder = Path(sys.argv[1])
for number in count():
    with new_folder(folder{keep}) as new:
        for name in ("first", "second", "third"):
            (new / name).write_text(str(number) * 20_000)
    if number == 0:
        print("writes", flush=True)
    {after}
"""
REPLACES = WRITES.format(keep="", after="")
MAKES = WRITES.format(keep=", keep=True", after="folder.rename(folder.with_name(f'made-{number}'))")


def whole(folder: Path) -> bool:
    """Whether all files are of one writing."""
    texts = {(folder / name).read_text() for name in FILES}
    return len(texts) == 1 and len(texts.pop()) >= 20_000


def test_a_killed_writer_leaves_no_mixture(tmp_path: Path, kill: Kill) -> None:
    """Where it was killed between the two renames, old and new lie beside the name, both whole."""
    folder = tmp_path / "folder"
    for seconds in KILLS:
        kill(REPLACES, folder, seconds)
        there = [one for one in tmp_path.iterdir() if not one.name.startswith(".")]
        assert there == [folder] or [*tmp_path.glob(".folder.*.old")]
        assert all(whole(one) for one in there)


def test_who_is_killed_while_making_a_folder_makes_none(tmp_path: Path, kill: Kill) -> None:
    for number, seconds in enumerate(KILLS):
        place = tmp_path / str(number)
        kill(MAKES, place / "folder", seconds)
        there = [one for one in place.iterdir() if not one.name.startswith(".")]
        assert all(whole(one) for one in there)
        assert there


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "folder"
    for text in ("first", "second"):
        with new_folder(folder) as new:
            (new / "below").mkdir()
            (new / "below" / "file").write_text(text)
            assert not (folder / "below" / "file").exists() or text == "second"
    assert (folder / "below" / "file").read_text() == "second"
    assert list(folder.parent.iterdir()) == [folder]


def test_what_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with new_folder(folder) as new:
        (new / "file").write_text("old")

    def interrupted() -> None:
        with new_folder(folder) as new:
            (new / "file").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_one_that_somebody_made_meanwhile_may_stay(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with new_folder(folder, keep=True) as new:
        (new / "file").write_text("second")
        with new_folder(folder, keep=True) as faster:
            (faster / "file").write_text("first")
    assert (folder / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_killed_writers_left_goes_after_a_day(tmp_path: Path) -> None:
    names = ("a" * 32, f"{'b' * 32}.old", "c" * 32, "backup")
    old, replaced, young, mine = (tmp_path / f".folder.{end}" for end in names)
    for one in (old, replaced, young, mine):
        one.mkdir()
    for one in (old, replaced, mine):
        os.utime(one, (0, 0))
    with new_folder(tmp_path / "folder"):
        pass
    assert {*tmp_path.iterdir()} == {young, mine, tmp_path / "folder"}


def test_a_hidden_folder_vanishes_unless_it_gets_a_name(tmp_path: Path) -> None:
    with hidden_folder(tmp_path) as new:
        assert new.name.startswith(".")
        assert list(tmp_path.iterdir()) == [new]
    assert list(tmp_path.iterdir()) == []
    with hidden_folder(tmp_path) as new:
        new.rename(tmp_path / "named")
    assert list(tmp_path.iterdir()) == [tmp_path / "named"]


def test_a_rename_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace, asked = tmp_path / "folder", os.replace, []
    folder.mkdir()
    (folder / "file").write_text("old")

    def full(source: Path, target: Path) -> None:
        asked.append(target)
        if asked.count(folder) == 1 and target == folder:
            raise OSError("Disk quota exceeded")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="quota"), new_folder(folder) as new:
        (new / "file").write_text("new")
    assert (folder / "file").read_text() == "old"
    assert [*tmp_path.iterdir()] == [folder]


def test_the_nearest_of_a_path_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert nearest(Path("there")) == tmp_path / "there"
    assert nearest(Path("link/new/newer")) == tmp_path / "there"
    assert nearest(Path("new/../newer")) == tmp_path
