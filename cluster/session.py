"""Being connected to a cluster: a given one, or one that lives as long as the session."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import environment
from cluster.address import Endpoint, resolve
from cluster.errors import ClusterError
from cluster.handshake import check_cluster
from cluster.local import local_cluster
from cluster.running import running


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
        owned = None
        if address is None and not os.environ.get("RAY_ADDRESS"):
            owned = stack.enter_context(local_cluster(num_cpus, num_gpus))
            endpoint = Endpoint(owned.address, None, owned.token_file)
        else:
            endpoint = resolve(address or "auto")
        stack.enter_context(environment.applied(environment.settings(endpoint.token_file)))
        if owned is None:  # ours has just said that it is up, and may be slow to answer
            _check(endpoint)
        stack.callback(_disconnect)
        context = _connect(endpoint)
        dashboard_url = _url(context.dashboard_url)
        if owned and dashboard_url:
            owned.record_dashboard(dashboard_url)
        yield Session(
            endpoint.address or "",
            dashboard_url,
            endpoint.token_file,
            owned is not None,
            _log_folder(context),
        )


def check_joinable(address: str) -> None:
    """Raise the ClusterError of a `session(address)` that would not come about: nothing is there,
    a dashboard, or a cluster of another version or with another token. Joins nothing."""
    endpoint = resolve(address)
    with environment.applied(environment.settings(endpoint.token_file)):
        _check(endpoint)


def _check(endpoint: Endpoint) -> None:
    """Something that can be joined answers there."""
    if endpoint.address is None:
        raise ClusterError(
            f"{endpoint.dashboard_url}: is a dashboard, which takes submitted jobs only; to run "
            "here, give HOST:PORT of the cluster itself (GCS), by default port 6379"
        )
    check_cluster(endpoint.address)


def _connect(endpoint: Endpoint) -> Any:
    """Connect this process; Ray's context."""
    import ray

    try:
        return ray.init(endpoint.address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"{endpoint.address}: cannot join: {_line(error)}") from error


def _disconnect() -> None:
    import ray

    ray.shutdown()


def _connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _joined(address: str | None) -> Session:
    import ray

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
