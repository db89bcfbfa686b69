"""One process makes an entry, others wait for it; nobody finds half of one."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from workers.config.base import InputError
from workers.data.store import entries
from workers.data.store.entries import ROWS, Cache
from workers.run.files import locked

NAMES = ["a" * 32, "b" * 32, "c" * 32]


def nothing() -> None:
    pass


def write(size: int = 10) -> Callable[[Path], None]:
    def into(folder: Path) -> None:
        (folder / ROWS).write_bytes(b"x" * size)

    return into


def never(folder: Path) -> None:
    raise AssertionError(f"{folder} is made again")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_it_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    first = cache.opened(NAMES[0], write(), nothing)
    again = cache.opened(NAMES[0], never, nothing)
    assert first.folder == again.folder == tmp_path / NAMES[0]
    assert first.held.read() == again.held.read() == b"x" * 10


def test_others_wait_for_who_makes_it(tmp_path: Path) -> None:
    cache, done, waits = Cache(tmp_path, 1000), threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        assert waits.wait(60)
        write()(folder)
        done.set()

    def second() -> None:
        assert not done.is_set()
        waits.set()

    maker = threading.Thread(target=cache.opened, args=(NAMES[0], slowly, nothing))
    maker.start()
    while not list(tmp_path.glob(".*")):  # it is in the making
        time.sleep(0.01)
    with cache.opened(NAMES[0], never, second).held as held:
        assert held.read() == b"x" * 10
    maker.join()
    assert done.is_set()


def test_what_fails_leaves_nothing_and_the_next_one_has_its_turn(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)

    def wrong(folder: Path) -> None:
        write()(folder)
        raise InputError("line 3: is wrong")

    def full(folder: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(InputError, match="line 3: is wrong"):
        cache.opened(NAMES[0], wrong, nothing)
    assert names(tmp_path) == []
    with pytest.raises(InputError, match=r"cannot be written: No space left on device; make room"):
        cache.opened(NAMES[0], full, nothing)
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        cache.opened(NAMES[0], interrupted, nothing)
    assert names(tmp_path) == []
    cache.opened(NAMES[0], write(), nothing).held.close()


def interrupted(folder: Path) -> None:
    write()(folder)
    raise KeyboardInterrupt


def test_who_waits_can_be_interrupted(tmp_path: Path) -> None:
    cache, waiting = Cache(tmp_path, 1000), partial(interrupted, tmp_path)
    with locked(tmp_path / f"{NAMES[0]}.lock") as mine:
        assert mine
        with pytest.raises(KeyboardInterrupt):
            cache.opened(NAMES[0], never, waiting)


def killed_while_it_writes(folder: Path) -> None:
    def half(new: Path) -> None:
        (new / ROWS).write_bytes(b"half")
        os._exit(9)

    Cache(folder, 1000).opened(NAMES[0], half, nothing)


@pytest.mark.usefixtures("processes")
def test_a_killed_writer_holds_nobody_up_and_what_it_left_goes(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=killed_while_it_writes, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    [left] = names(tmp_path)
    assert left.startswith(f".{NAMES[0]}.")
    cache = Cache(tmp_path, 1000)
    cache.opened(NAMES[1], write(), nothing)
    assert names(tmp_path) == [NAMES[1]]
    assert cache.opened(NAMES[0], write(), nothing).held.read() == b"x" * 10


def test_what_is_in_the_making_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)

    def beside(folder: Path) -> None:
        cache.opened(NAMES[1], write(), nothing)
        assert folder.is_dir()
        write()(folder)

    cache.opened(NAMES[0], beside, nothing)
    assert names(tmp_path) == NAMES[:2]


def test_the_least_recently_used_go_first_and_none_that_is_open(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 250)
    for age, name in enumerate(NAMES):
        cache.opened(name, write(100), nothing).held.close()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    # The third made the second go, which was older than the first then.
    assert names(tmp_path) == [NAMES[0], NAMES[2]]
    held = cache.opened(NAMES[2], never, nothing).held
    os.utime(tmp_path / NAMES[2], (1, 1))
    Cache(tmp_path, 0).trim()
    assert names(tmp_path) == [NAMES[2]]
    held.close()
    Cache(tmp_path, 0).trim()
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def none(path: Path) -> Iterator[bool]:
        path.touch()
        raise OSError(38, "Function not implemented")
        yield

    monkeypatch.setattr(entries, "locked", none)
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(38, "no locks")))
    cache = Cache(tmp_path, 0)

    def beside(folder: Path) -> None:
        cache.opened(NAMES[1], write(), nothing)
        write()(folder)

    cache.opened(NAMES[0], beside, nothing)
    assert names(tmp_path) == NAMES[:2]  # nobody knows what is in use, or in the making


def test_an_entry_that_goes_while_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path, 1000)
    cache.opened(NAMES[0], write(), nothing).held.close()
    share = entries._share

    def too_late(file: object) -> bool:
        monkeypatch.setattr(entries, "_share", share)
        Cache(tmp_path, 0).trim()
        return True

    monkeypatch.setattr(entries, "_share", too_late)
    assert cache.opened(NAMES[0], write(20), nothing).held.read() == b"x" * 20


def test_what_is_no_entry_makes_room_for_one(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_text("a file")
    (tmp_path / NAMES[1]).mkdir()
    cache = Cache(tmp_path, 1000)
    for name in NAMES[:2]:
        cache.opened(name, write(), nothing).held.close()
        cache.opened(name, never, nothing).held.close()


def test_an_entry_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A link to itself: whoever runs this may be root, whom no mode keeps from reading."""
    (tmp_path / NAMES[0]).mkdir()
    (tmp_path / NAMES[0] / ROWS).symlink_to(tmp_path / NAMES[0] / ROWS)
    with pytest.raises(InputError, match=f"{NAMES[0]}: cannot be read: .*; remove it"):
        Cache(tmp_path, 1000).opened(NAMES[0], never, nothing)


def test_an_entry_is_not_dropped_while_another_one_has_the_turn(tmp_path: Path) -> None:
    """Its lock would go with it, and the next one would make the same at the same time."""
    cache, none = Cache(tmp_path, 1000), Cache(tmp_path, 0)
    cache.opened(NAMES[0], write(), nothing).held.close()
    lock = tmp_path / f"{NAMES[0]}.lock"
    with locked(lock) as mine:
        assert mine
        none.trim()
        assert lock.exists()
    none.trim()
    assert list(tmp_path.iterdir()) == []


def test_an_entry_larger_than_the_cache_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path, 50)
    cache.opened(NAMES[0], write(50), nothing)
    assert caplog.messages == []
    cache.opened(NAMES[1], write(51), nothing)
    [said] = caplog.messages
    assert f"{NAMES[1]}: takes 5.1e-08 GB, more than the cache may (MOETUNE_CACHE_GB)" in said
