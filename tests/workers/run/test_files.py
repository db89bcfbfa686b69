"""Files are whole or not there."""

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import lock_descriptor

from tests.workers.run.conftest import KILLS, Kill
from workers.run.files import DELETED, beside, delete, locked, new_file, write_once, write_text

SIZE = 300_000
REPLACES = f"""
import sys
from itertools import cycle
from pathlib import Path
from workers.run.files import write_text
path = Path(sys.argv[1])
for number, letter in enumerate(cycle("ab")):
    write_text(path, letter * {SIZE}, durable=number % 2 == 0)
    if number == 0:
        print("writes", flush=True)
"""


def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path, kill: Kill) -> None:
    path = tmp_path / "file"
    hidden = set()
    for seconds in KILLS:
        kill(REPLACES, path, seconds)
        assert path.read_text() in ("a" * SIZE, "b" * SIZE)
        hidden |= {one.name for one in tmp_path.iterdir()} - {path.name}
    form = beside(path).name
    assert {(name.startswith(".file."), len(name)) for name in hidden} <= {(True, len(form))}


def test_readers_beside_a_writer_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "a" * SIZE)
    seen = set()
    with ThreadPoolExecutor() as writer:
        writes = [writer.submit(write_text, path, letter * SIZE) for letter in "ab" * 50]
        while not all(write.done() for write in writes):
            seen.add(path.read_text())
        for write in writes:
            write.result()
    assert seen <= {"a" * SIZE, "b" * SIZE}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writes", [None, "other"])
def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, writes: str | None) -> None:
    path = tmp_path / "file"
    hidden = writes and tmp_path / writes
    write_text(path, "old")

    def interrupted() -> None:
        with new_file(path, hidden=hidden or None) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "old")]


def test_a_file_for_this_user_alone(tmp_path: Path) -> None:
    path, hidden = tmp_path / "file", tmp_path / ".file.part"
    with new_file(path, mode=0o600, hidden=hidden) as file:
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o600
        file.write(b"secret")
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o600, "secret")
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_of_several_writers_counts(tmp_path: Path) -> None:
    path, together = tmp_path / "file", threading.Barrier(8)

    def write(number: int) -> str:
        together.wait()
        write_once(path, str(number))
        return path.read_text()

    with ThreadPoolExecutor(8) as writers:
        read = set(writers.map(write, range(8)))
    assert read == {path.read_text()}
    assert list(tmp_path.iterdir()) == [path]


def test_once_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    for text in ("first", "second"):
        write_once(path, text)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "first")]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    for write in (write_text, write_once):
        with pytest.raises(FileNotFoundError):
            write(tmp_path / "no" / "file", "text")
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        (folder / "x").touch()
        if write is write_text:
            with pytest.raises(OSError, match="folder"):
                write(folder, "text")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_what_is_deleted_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    (folder / "below").mkdir(parents=True)
    file.write_text("text")
    link.symlink_to(folder)
    delete(link)
    assert folder.is_dir()
    delete(file)
    delete(tmp_path / "never there")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workers.run.files.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        delete(folder)
    [left] = tmp_path.iterdir()
    assert left.name.startswith(DELETED)
    assert (left / "below").is_dir()


def test_a_lock_file_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "lock"
    with locked(path) as first, locked(path) as second:
        assert (first, second) == (True, False)
    with locked(path) as again:
        assert again


def test_the_lock_on_a_file_that_was_deleted_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder deletes it between our opening and our locking: the next one makes another."""
    path = tmp_path / "lock"

    def deleted_before(*given: Any, **named: Any) -> bool:
        path.unlink()
        return bool(lock_descriptor(*given, **named))

    monkeypatch.setattr("workers.run.files.lock_descriptor", deleted_before)
    with locked(path) as late:
        assert not late
    monkeypatch.undo()
    with locked(path) as next_one:
        assert next_one


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, kill: Kill) -> None:
    code = (
        "import sys, time; from pathlib import Path; from workers.run.files import locked\n"
        "with locked(Path(sys.argv[1])) as mine:\n"
        "    assert mine; print('writes', flush=True); time.sleep(600)"
    )
    kill(code, tmp_path / "lock", 0.0)
    with locked(tmp_path / "lock") as mine:
        assert mine
