"""The local clusters of this user: each has a folder, locked by its owner while that lives."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from cluster.errors import ClusterError


@dataclass(frozen=True)
class LocalCluster:
    """A cluster on this machine, known by its folder, which only this user can enter."""

    folder: Path

    @property
    def token_file(self) -> Path:
        """The token, readable by this user only."""
        return self.folder / "token"

    @property
    def ray_folder(self) -> Path:
        """Ray's temporary folder: sockets and logs."""
        return self.folder / "ray"

    @property
    def is_up(self) -> bool:
        """Whether Ray has come up: the last thing it does is to write its address."""
        return (self.ray_folder / "ray_current_cluster").is_file()

    @property
    def address(self) -> str:
        """host:port of the control service (GCS)."""
        return (self.ray_folder / "ray_current_cluster").read_text().strip()

    @property
    def dashboard_url(self) -> str | None:
        """The dashboard, once the owner is connected."""
        record = self.folder / "dashboard"
        return record.read_text().strip() if record.is_file() else None

    def record_dashboard(self, url: str) -> None:
        """Let this user's other processes find the dashboard."""
        _write_private(self.folder / "dashboard", url)


def running() -> list[LocalCluster]:
    """The local clusters of this user that are up, newest first."""
    with _guarded() as home:
        clusters = [LocalCluster(folder) for folder in home.iterdir() if _is_owned(folder)]
    up = [one for one in clusters if one.is_up]
    return sorted(up, key=lambda one: one.folder.stat().st_mtime, reverse=True)


def abandoned() -> list[Path]:
    """Folders of clusters whose owner was killed. The next cluster that starts removes them."""
    with _guarded() as home:
        return _without_owner(home)


def _without_owner(home: Path) -> list[Path]:
    return [folder for folder in home.iterdir() if folder.is_dir() and not _is_owned(folder)]


@contextmanager
def _guarded() -> Iterator[Path]:
    """The folder of all clusters; nobody else begins one meanwhile, or asks whose they are: to ask
    is to try the owner's lock, which only one may do at a time."""
    home = _home()
    with open(home / "lock", "w") as guard:
        lock_descriptor(guard.fileno())
        yield home


@contextmanager
def claimed() -> Iterator[LocalCluster]:
    """A new cluster's folder with its token; removed at the end.

    Folders whose owner was killed are removed too: the kernel has let go of their locks.
    """
    with _guarded() as home:
        for folder in _without_owner(home):
            shutil.rmtree(folder, ignore_errors=True)
        cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="", dir=home)))
        owner = open(cluster.folder / "owner", "w")  # noqa: SIM115 (held until the end)
        lock_descriptor(owner.fileno())
    try:
        owner.write(str(os.getpid()))
        _write_private(cluster.token_file, secrets.token_hex(32))
        yield cluster
    finally:
        shutil.rmtree(cluster.folder, ignore_errors=True)
        owner.close()


def _home() -> Path:
    """Short, since the path of a socket below it has at most 107 characters."""
    temporary = tempfile.gettempdir()
    home = Path(temporary if len(temporary) <= 16 else "/tmp") / f"moetune-{os.getuid()}"  # noqa: S108
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.lstat()
    if home.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ClusterError(f"{home}: must be a folder of yours that nobody else can enter")
    return home


def _is_owned(folder: Path) -> bool:
    """Whether a living process holds the folder's lock."""
    try:
        with open(folder / "owner") as owner:
            return not lock_descriptor(owner.fileno(), blocking=False)
    except OSError:
        return False


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
