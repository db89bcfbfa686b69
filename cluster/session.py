"""Being connected to a cluster: a given one, or one that lives as long as the session."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import environment
from cluster.address import ClusterAddress, answers, on_loopback, resolve
from cluster.errors import ClusterError, ClusterGone
from cluster.handshake import check_cluster, own_address
from cluster.local import local_cluster
from cluster.running import running

GONE_SECONDS = 3.0
"""A head that takes no connection for so long is dead. Ray itself waits for a minute, and then
ends the process in the middle of whatever it does."""


@dataclass(frozen=True)
class Session:
    """A connection of this process to a cluster."""

    address: str
    """host:port of the control service (GCS)."""
    dashboard_url: str | None
    """The dashboard, None if the cluster has none."""
    token_file: Path | None
    """The token, if this user's local cluster is meant."""
    owned: bool
    """Whether the cluster was started by, and ends with, this session."""
    log_folder: Path | None = None
    """Ray's log folder on this node."""

    @property
    def showing_token(self) -> str | None:
        """The shell's command that shows the token that the dashboard asks for, if it does."""
        return environment.showing_token(self.token_file)

    def wait(self) -> None:
        """Block for as long as the cluster's head lives; ClusterGone then."""
        last = time.monotonic()
        while time.monotonic() - last < GONE_SECONDS:
            if answers(self.address):
                last = time.monotonic()
            time.sleep(0.5)
        raise ClusterGone(f"{self.address}: the cluster's head is gone")


@contextmanager
def session(
    address: str | None = None, *, num_cpus: int | None = None, num_gpus: int | None = None
) -> Iterator[Session]:
    """Connect to `address` (host:port, or auto), or start a local cluster if None.

    None takes RAY_ADDRESS if it is set, as inside a Ray Job. A process has one connection: inside
    another session this one joins it, and fails if another cluster is meant. What the session
    started is stopped at its end, after an error and on Ctrl-C too.
    `num_cpus`, `num_gpus` size a local cluster. Raises ClusterError.
    """
    if _connected():
        yield _joined(address)
        return
    with ExitStack() as stack:
        token_file: Path | None
        if starts_here(address):
            owned = stack.enter_context(local_cluster(num_cpus, num_gpus))
            here, token_file = owned.address, owned.token_file
        else:
            owned, endpoint = None, resolve(address or "auto")
            here, token_file = _joinable(endpoint), endpoint.token_file
        settings = environment.settings(token_file, local=on_loopback(here))
        stack.enter_context(environment.applied(settings))
        stack.callback(_disconnect, here)
        context = _connect(here)
        dashboard_url = _url(context.dashboard_url)
        if owned and dashboard_url:
            owned.record_dashboard(dashboard_url)
        yield Session(here, dashboard_url, token_file, owned is not None, _log_folder(context))


def starts_here(address: str | None) -> bool:
    """Whether `session(address)` outside of another one starts a cluster on this machine."""
    return address is None and not os.environ.get("RAY_ADDRESS")


def check_joinable(address: str) -> None:
    """Raise the ClusterError of a `session(address)` that would not come about: nothing is there,
    a dashboard, or a cluster of another version or with another token. Joins nothing."""
    _joinable(resolve(address))


def _joinable(endpoint: ClusterAddress) -> str:
    """The address to join by, which is the cluster's own name for its head. Something that can be
    joined from this machine answers there."""
    if endpoint.address is None:
        raise ClusterError(
            f"{endpoint.dashboard_url}: is a dashboard, which takes submitted jobs only; to run "
            "here, give HOST:PORT of the cluster itself (GCS), by default port 6379"
        )
    with environment.applied(environment.authentication(endpoint.token_file)):
        check_cluster(endpoint.address)
        return own_address(endpoint.address)


def _connect(address: str) -> Any:
    """Connect this process; Ray's context."""
    import ray

    try:
        with _own_sigterm():
            return ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"{address}: cannot join: {_line(error)}") from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """What this process does on SIGTERM stays so: Ray takes the signal, and its core too, which
    ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _disconnect(address: str) -> None:
    import ray

    if answers(address):
        ray.shutdown()


def _connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _joined(address: str | None) -> Session:
    import ray

    with _own_sigterm():
        context = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR)
    here = ray.get_runtime_context().gcs_address
    url = _url(context.dashboard_url)
    if address not in (None, "auto", here, url):
        resolve(address)  # an address that means no cluster at all is the error to name first
        raise ClusterError(f"{address}: this process is connected to another cluster, {here}")
    tokens = [one.token_file for one in running() if one.address == here]
    token_file = tokens[0] if tokens else None
    return Session(here, url, token_file, owned=False, log_folder=_log_folder(context))


def _log_folder(context: Any) -> Path | None:
    folder = context.address_info.get("session_dir")
    return Path(folder) / "logs" if folder else None


def _url(address: str | None) -> str | None:
    return f"http://{address}" if address and "://" not in address else address


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
