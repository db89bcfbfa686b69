"""Folders that are there whole or not at all."""

import os
from pathlib import Path

import pytest

from orchestrator.demo.whole import whole


def _fill(folder: Path) -> None:
    (folder / "file").write_text("made")


def test_makes_a_folder_once(tmp_path: Path) -> None:
    target = tmp_path / "not" / "there"
    assert whole(target, _fill) == target
    (target / "file").write_text("changed")
    whole(target, _fill)
    assert (target / "file").read_text() == "changed"


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        _fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "target", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_who_comes_second_takes_what_the_first_has_made(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        _fill(folder)
        (whole(tmp_path / "target", _fill) / "file").write_text("first")

    assert (whole(tmp_path / "target", overtaken) / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "target"]


def test_what_killed_makers_left_goes_after_a_day(tmp_path: Path) -> None:
    old, young, mine = (tmp_path / f".target.{end}" for end in ("a" * 32, "b" * 32, "backup"))
    for folder in (old, young, mine):
        folder.mkdir()
    for folder in (old, mine):
        os.utime(folder, (0, 0))
    whole(tmp_path / "target", _fill)
    assert {*tmp_path.iterdir()} == {young, mine, tmp_path / "target"}
