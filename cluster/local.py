"""A Ray cluster on this machine: started quickly, closed to others, gone with its owner.

It is a `ray start --head --block` process of ours. Every server of it listens on loopback only, and
answers only to its token. What stays open: other users of this machine reach the ports (the token
stops them at Ray's core, jobs and dashboard, not at the metrics ports), Ray Serve's proxy has no
authentication of its own, and Serve's replicas take each other's calls on all interfaces, for which
Ray has no setting (the token stops strangers there).
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cluster import environment
from cluster.errors import ClusterError
from cluster.running import LocalCluster, claimed

OBJECT_STORE_BYTES = 256 * 2**20
_START_SECONDS = 180
_STOP_SECONDS = 20
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def local_cluster(
    num_cpus: int | None = None, num_gpus: int | None = None
) -> Iterator[LocalCluster]:
    """Start a cluster and stop it at the end; it also ends when this process is killed.

    Enter it in the main thread: the kernel ties the cluster to the thread that started it.
    `num_cpus`, `num_gpus`: what the cluster says it has; None counts what is there.
    """
    with claimed() as cluster:
        head = _start(cluster, num_cpus, num_gpus)
        try:
            _wait_until_up(head, cluster)
            yield cluster
        finally:
            _stop(head)


def _start(
    cluster: LocalCluster, num_cpus: int | None, num_gpus: int | None
) -> subprocess.Popen[bytes]:
    with open(cluster.folder / "head.log", "wb") as log:
        return subprocess.Popen(  # noqa: S603
            _command(cluster.ray_folder, num_cpus, num_gpus),
            env=_environment(cluster.token_file),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we stop it in order
            preexec_fn=_dying_with_parent(),  # noqa: PLW1509
        )


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
    start = (sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block")
    return [*start, "--no-monitor", "--disable-usage-stats", *given]


def _environment(token_file: Path) -> dict[str, str]:
    """What Ray's processes and all workers inherit; `python` is this very one for jobs too."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    ours = environment.loopback() | environment.authentication(token_file) | {"PATH": path}
    inherited = {n: v for n, v in os.environ.items() if n not in environment.SECRETS}
    return environment.DRIVER | inherited | ours


def _wait_until_up(head: subprocess.Popen[bytes], cluster: LocalCluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not cluster.is_up:
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


def _dying_with_parent() -> Callable[[], object] | None:
    """For the child: be ended by the kernel when the thread that started it ends (Linux)."""
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
