"""Copies of checkpoints on another filesystem, here a folder behind a file:// URI."""

from pathlib import Path

import pytest

from workers.spec import InputError
from workers.train.uploads import ATTEMPTS, COMPLETE, Place, Uploads, fetched


def checkpoint(folder: Path, step: int, content: str = "weights") -> Path:
    path = folder / f"step-{step:08d}"
    (path / "adapter").mkdir(parents=True)
    (path / "state.pt").write_text(f"state {step}")
    (path / "adapter" / "weights").write_text(content)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.of(f"file://{tmp_path}/bucket/study/run/")


def uploads(place: Place, keep: int = 2, told: list[str] | None = None) -> Uploads:
    return Uploads(place, keep, (told if told is not None else []).append, wait=0.01)


def test_the_latest_are_there_and_come_back(place: Place, tmp_path: Path) -> None:
    copies = uploads(place)
    for step in (2, 4, 6):
        copies.put(checkpoint(tmp_path / "run", step))
        while copies.reading or copies._next:  # each of them, not just the last
            pass
    copies.finish()
    assert place.complete() == ["step-00000004", "step-00000006"]
    found = fetched(place, tmp_path / "new")
    assert found == tmp_path / "new" / "step-00000006"
    assert (found / "adapter" / "weights").read_text() == "weights"
    assert sorted(path.name for path in found.rglob("*")) == ["adapter", "state.pt", "weights"]


def test_what_is_not_whole_is_passed_over(place: Place, tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        place.put(checkpoint(tmp_path / "run", step))
    there = Path(place.path)
    (there / "step-00000008" / COMPLETE).unlink()  # cut off before its end
    (there / "step-00000006" / "adapter" / "weights").write_text("others")
    (there / "step-00000004" / COMPLETE).write_text("{")
    assert fetched(place, tmp_path / "new") == tmp_path / "new" / "step-00000002"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["step-00000002"]
    assert fetched(Place.of(f"file://{tmp_path}/nowhere"), tmp_path / "new") is None


def test_a_copy_that_fails_is_said_and_tried_again(place: Place, tmp_path: Path) -> None:
    (tmp_path / "bucket").write_text("a file where a folder must be")
    told: list[str] = []
    copies = uploads(place, told=told)
    copies.put(checkpoint(tmp_path / "run", 2))  # returns although nothing can be copied
    while not told:
        pass
    (tmp_path / "bucket").unlink()
    copies.finish()
    assert told[0].startswith("step-00000002: ")
    assert f"(attempt 1 of {ATTEMPTS})" in told[0]
    assert place.complete() == ["step-00000002"]


def test_only_the_last_copy_must_succeed(place: Place, tmp_path: Path) -> None:
    blocker = tmp_path / "bucket"
    blocker.write_text("a file where a folder must be")
    told: list[str] = []
    copies = uploads(place, told=told)
    copies.put(checkpoint(tmp_path / "run", 2))
    while len(told) < ATTEMPTS or copies.reading:
        pass
    blocker.unlink()
    copies.put(checkpoint(tmp_path / "run", 4))
    copies.finish()

    blocker.rename(tmp_path / "away")
    blocker.write_text("a file again")
    copies = uploads(place, told=told)
    copies.put(checkpoint(tmp_path / "run", 6))
    with pytest.raises(InputError, match="the last checkpoint cannot be uploaded: step-00000006"):
        copies.finish()


def test_a_filesystem_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"checkpoint\.upload tape://x: cannot be used"):
        Place.of("tape://x")
