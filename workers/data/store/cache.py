"""Where this node keeps what it can make again, for all processes of one user.

CACHE/rows/KEY/       encoded rows (workers.data.store.entries)
CACHE/digests/KEY     digests of files (workers.data.store.digests)
CACHE/compiled/       what torch.compile has made (workers.train.compiled)

CACHE is what MOETUNE_CACHE names, else `moetune` in the user's cache ($XDG_CACHE_HOME, ~/.cache),
else, where that cannot be written, a folder of the system's for temporary files.
"""

import logging
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from workers.config.base import InputError, one_line

CACHE_VARIABLE = "MOETUNE_CACHE"
LIMIT_VARIABLE = "MOETUNE_CACHE_GB"
COMPILED_FOLDER = "compiled"
DEFAULT_GB = 20.0
"""What encoded rows take at most, but for those in use."""
log = logging.getLogger(__name__)


def cache_folder(kind: str) -> Path:
    """The cache's folder for things of a kind, made if need be. Its user alone can read it.
    InputError where there is none to be had."""
    return private(cache_root() / kind)


def cache_root() -> Path:
    """The whole cache, where it is or would be. InputError where there is none to be had."""
    if given := os.environ.get(CACHE_VARIABLE):
        return _named(given)
    home = users_cache()
    reason = _unwritable(home) if home else "this user has no home folder"
    if home and reason is None:
        return home
    other = Path(tempfile.gettempdir()) / f"moetune-cache-{os.getuid()}"
    where = f"{home}: " if home else ""
    _say_once(f"{where}{reason}; encoded rows are kept in {other} (MOETUNE_CACHE names another)")
    return private(other)


def users_cache() -> Path | None:
    """The user's own cache of ours, where nothing else is said; None for one without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(os.path.expanduser("~/.cache"))  # pathlib's raises
    return base / "moetune" if base.is_absolute() else None


def _named(given: str) -> Path:
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"MOETUNE_CACHE: {given}: there is no such home folder") from None


def limit_bytes() -> int:
    """What encoded rows may take. InputError where MOETUNE_CACHE_GB is no such number."""
    given = os.environ.get(LIMIT_VARIABLE) or DEFAULT_GB
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise InputError(f"MOETUNE_CACHE_GB: must be a number of gigabytes, not {given!r}")
    return int(gigabytes * 1e9)


def private(folder: Path) -> Path:
    """A folder of this user's, made if need be; InputError where it is another one's, or no
    folder: whoever could write there could say what is learned."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if found.st_mode & 0o077 and found.st_uid == os.getuid() and not folder.is_symlink():
            folder.chmod(0o700)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if found.st_uid != os.getuid() or folder.is_symlink():
        raise InputError(
            f"{folder}: belongs to another user, or is a link; name a folder of your own by "
            "MOETUNE_CACHE"
        )
    return folder


def cannot_write(place: Path, error: OSError) -> InputError:
    """What is wrong with the cache, and what to do."""
    reason = error.strerror or one_line(error)
    return InputError(
        f"{place}: cannot be written: {reason}; make room there, or name another folder by "
        "MOETUNE_CACHE"
    )


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be kept there, if so."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(one.lstat().st_uid != os.getuid() for one in folder.iterdir()):  # sudo's, perhaps
            return "holds folders of another user"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"cannot be written: {error.strerror}"


@lru_cache
def _say_once(what: str) -> None:
    log.warning(what)
