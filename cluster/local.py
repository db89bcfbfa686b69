"""A Ray cluster on this machine: started quickly, closed to others, gone with its owner.

It is a `ray start --head --block` process of ours. Every server of it listens on loopback only, and
answers only to its token. What stays open: other users of this machine reach the ports (the token
stops them at Ray's core, jobs and dashboard, not at the metrics ports), Ray Serve's proxy has no
authentication of its own, and PyTorch's rendezvous store listens on all interfaces while a run of
several workers lasts.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import environment
from cluster.errors import ClusterError

OBJECT_STORE_BYTES = 256 * 2**20
_START_SECONDS = 120
_STOP_SECONDS = 20
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster of this user. `folder` is named by the process that owns it."""

    folder: Path

    @property
    def owner(self) -> int:
        """The process that started it and stops it."""
        return int(self.folder.name)

    @property
    def token_file(self) -> Path:
        """The token, readable by this user only."""
        return self.folder / "token"

    @property
    def address(self) -> str:
        """Address of its control service (GCS), as Ray wrote it when it was up."""
        return (self.folder / "ray" / "ray_current_cluster").read_text().strip()

    @property
    def dashboard_url(self) -> str | None:
        """The dashboard, once the owner is connected."""
        record = self.folder / "dashboard"
        return record.read_text().strip() if record.is_file() else None

    def record_dashboard(self, url: str | None) -> None:
        """Let this user's other processes find the dashboard."""
        if url is not None:
            _write_private(self.folder / "dashboard", url)


def running() -> list[LocalCluster]:
    """The local clusters of this user that are up, newest first."""
    folders = [path for path in _home().iterdir() if path.name.isdigit()]
    clusters = [LocalCluster(folder) for folder in folders if _alive(int(folder.name))]
    up = [one for one in clusters if (one.folder / "ray" / "ray_current_cluster").is_file()]
    return sorted(up, key=lambda one: one.folder.stat().st_mtime, reverse=True)


@contextmanager
def local_cluster(
    num_cpus: int | None = None, num_gpus: int | None = None
) -> Iterator[LocalCluster]:
    """Start a cluster and stop it at the end; it also ends when this process is killed.

    Enter it in the main thread: the kernel ties the cluster to the thread that started it.
    `num_cpus`, `num_gpus`: what the cluster says it has; None counts what is there.
    """
    cluster = LocalCluster(_new_folder())
    _write_private(cluster.token_file, secrets.token_hex(32))
    try:
        with open(cluster.folder / "head.log", "wb") as log:
            head = subprocess.Popen(  # noqa: S603
                _command(cluster.folder / "ray", num_cpus, num_gpus),
                env=os.environ
                | environment.loopback()
                | environment.DRIVER
                | environment.authentication(cluster.token_file),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we stop it in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        try:
            _wait_until_up(head, cluster)
            yield cluster
        finally:
            _stop(head)
    finally:
        shutil.rmtree(cluster.folder, ignore_errors=True)


def _command(folder: Path, num_cpus: int | None, num_gpus: int | None) -> list[str]:
    options = {
        "port": 0,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": 0,
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "ray-client-server-port": _free_port(),  # cannot be switched off; the default is fixed
        "temp-dir": folder,
        "object-store-memory": OBJECT_STORE_BYTES,
        "include-log-monitor": False,
        "num-cpus": num_cpus,
        "num-gpus": num_gpus,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--no-monitor",
        "--disable-usage-stats",
        *given,
    ]


def _wait_until_up(head: subprocess.Popen[bytes], cluster: LocalCluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (cluster.folder / "ray" / "ray_current_cluster").is_file():
        if head.poll() is not None or time.monotonic() > deadline:
            lines = (cluster.folder / "head.log").read_text(errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()][-1:] or ["no output"]
            raise ClusterError(f"local cluster: Ray did not start: {said[0]}")
        time.sleep(0.05)


def _stop(head: subprocess.Popen[bytes]) -> None:
    head.terminate()
    try:
        head.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _home() -> Path:
    """This user's own folder; short, since a socket's path has at most 107 characters."""
    temporary = tempfile.gettempdir()
    home = Path(temporary if len(temporary) <= 16 else "/tmp") / f"moetune-{os.getuid()}"  # noqa: S108
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or home.is_symlink():
        raise ClusterError(f"{home}: must be a folder of yours that nobody else can enter")
    return home


def _new_folder() -> Path:
    home = _home()
    for path in home.iterdir():  # what killed owners have left behind
        if path.name.isdigit() and (int(path.name) == os.getpid() or not _alive(int(path.name))):
            shutil.rmtree(path, ignore_errors=True)
    folder = home / str(os.getpid())
    folder.mkdir(mode=0o700)
    return folder


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _die_with_parent() -> None:
    """In the child: be ended by the kernel when the process that started it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
