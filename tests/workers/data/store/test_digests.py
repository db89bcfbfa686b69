"""A digest is remembered as long as its files are the same, and not longer."""

import hashlib
import os
from pathlib import Path

import pytest
from pyarrow import fs

from workers.data.sources.record import File
from workers.data.store import digests
from workers.data.store.digests import files_digest

LONG_AGO = 10**9


class Reads:
    """How often a file's bytes were read."""

    def __init__(self) -> None:
        self.blocks = 0

    def __call__(self) -> None:
        self.blocks += 1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of its own; and files settle at once, since no test can set back the time of a change."""
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -60.0)
    return tmp_path / "cache"


def taken(*paths: Path) -> tuple[str, int]:
    reads = Reads()
    return files_digest("source", here(*paths), reads), reads.blocks


def here(*paths: Path) -> list[File]:
    return [File(fs.LocalFileSystem(), str(path)) for path in paths]


def expected(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_bytes_are_read_once(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    assert taken(a, b) == (expected(a, b), 2)
    assert taken(a, b) == (expected(a, b), 0)
    assert taken(b, a) == (expected(b, a), 2)
    assert taken(a) == (expected(a), 1)


def test_every_change_is_noticed(tmp_path: Path) -> None:
    a, other = tmp_path / "a", tmp_path / "other"
    a.write_bytes(b"1")
    taken(a)
    a.write_bytes(b"2")  # as long as before,
    os.utime(a, ns=(LONG_AGO, LONG_AGO))
    assert taken(a) == (expected(a), 1)
    assert taken(a)[1] == 0
    a.write_bytes(b"3")  # and with the time of before
    os.utime(a, ns=(LONG_AGO, LONG_AGO))
    assert taken(a) == (expected(a), 1)
    other.write_bytes(b"4")
    os.utime(other, ns=(LONG_AGO, LONG_AGO))
    other.replace(a)
    assert taken(a) == (expected(a), 1)


def test_a_file_written_a_moment_before_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 3600.0)
    (tmp_path / "a").write_bytes(b"1")
    assert [taken(tmp_path / "a")[1] for _ in range(2)] == [1, 1]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    files_digest("source", here(path), lambda: os.utime(path))
    assert taken(path)[1] == 1


@pytest.mark.parametrize("left", ["{", "[]", "{}", '{"of": 1}'])
def test_a_note_that_is_damaged_is_written_anew(tmp_path: Path, cache: Path, left: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    taken(path)
    [note] = (cache / "digests").iterdir()
    note.write_text(left)
    assert [taken(path)[1] for _ in range(2)] == [1, 0]


def test_without_a_cache_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "a" / "cache"))
    assert [taken(tmp_path / "a") for _ in range(2)] == [(expected(tmp_path / "a"), 1)] * 2


def test_elsewhere_only_an_object_store_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    monkeypatch.setattr(digests, "_is_local", lambda _: False)
    there = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
    for stores, wanted in ((("s3",), [1, 1]), ((there.type_name,), [1, 0])):
        monkeypatch.setattr(digests, "OBJECT_STORES", stores)
        reads = [Reads(), Reads()]
        for one in reads:
            digest = files_digest("source", [File(there, str(path))], one)
            assert digest == expected(path)
        assert [one.blocks for one in reads] == wanted
