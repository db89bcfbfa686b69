"""Where the cache lies, and that it is its user's alone."""

import logging
import os
from pathlib import Path

import pytest

from workers.config.base import InputError
from workers.data.store import cache
from workers.data.store.cache import cache_folder, cache_root, limit_bytes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and nothing said about the cache."""
    for name in ("MOETUNE_CACHE", "MOETUNE_CACHE_GB", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache._say_once.cache_clear()
    return tmp_path / "home"


def test_it_is_where_caches_are_unless_the_environment_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder("rows") == home / ".cache" / "moetune" / "rows"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_root() == home / ".cache" / "moetune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("rows") == tmp_path / "xdg" / "moetune" / "rows"
    monkeypatch.setenv("MOETUNE_CACHE", "~/mine")
    assert cache_folder("digests") == home / "mine" / "digests"


def test_its_user_alone_can_read_it(home: Path) -> None:
    (home / ".cache" / "moetune" / "rows").mkdir(parents=True, mode=0o777)
    (home / ".cache" / "moetune" / "rows").chmod(0o777)
    assert cache_folder("rows").stat().st_mode & 0o777 == 0o700
    assert cache_folder("digests").stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_written_is_said_once(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("a file: whoever runs this may be root, whom no mode keeps from writing")
    other = tmp_path / f"moetune-cache-{os.getuid()}"
    with caplog.at_level(logging.WARNING):
        assert [cache_folder("rows") for _ in range(2)] == [other / "rows"] * 2
    assert other.stat().st_mode & 0o777 == 0o700
    [said] = caplog.messages
    assert str(home) in said
    assert str(other) in said
    assert "MOETUNE_CACHE" in said


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that no list of users has, as a container may be given."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_a_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert cache_folder("rows") == tmp_path / f"moetune-cache-{os.getuid()}" / "rows"
    [said] = caplog.messages
    assert said.startswith("this user has no home folder; encoded rows are kept in ")


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("named", ["~/cache", "~nobody-of-that-name/cache"])
def test_a_home_that_is_not_there_is_an_error(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOETUNE_CACHE", named)
    with pytest.raises(InputError, match=f"MOETUNE_CACHE: {named}: there is no such home folder"):
        cache_folder("rows")


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can give files away")
def test_where_sudo_has_left_its_folders_another_one_is_taken(home: Path, tmp_path: Path) -> None:
    (home / ".cache" / "moetune" / "rows").mkdir(parents=True)
    os.chown(home / ".cache" / "moetune" / "rows", 12345, 12345)
    assert cache_folder("rows") == tmp_path / f"moetune-cache-{os.getuid()}" / "rows"


def test_what_somebody_else_has_put_there_is_refused(home: Path, tmp_path: Path) -> None:
    home.write_text("")
    other = tmp_path / f"moetune-cache-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    other.symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="belongs to another user, or is a link"):
        cache_folder("rows")
    other.unlink()
    other.mkdir()
    if os.getuid() == 0:
        os.chown(other, 12345, 12345)
        with pytest.raises(InputError, match="belongs to another user, or is a link"):
            cache_folder("rows")


def test_a_named_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOETUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"file/cache/rows: cannot be written: Not a directory"):
        cache_folder("rows")


def test_its_size_is_settable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit_bytes() == 20 * 10**9
    monkeypatch.setenv("MOETUNE_CACHE_GB", "0.5")
    assert limit_bytes() == 5 * 10**8
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("MOETUNE_CACHE_GB", wrong)
        with pytest.raises(InputError, match="MOETUNE_CACHE_GB: must be a number of gigabytes"):
            limit_bytes()
