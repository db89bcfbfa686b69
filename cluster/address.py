"""What the user means by an address, and whether anything answers there."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import ClusterError
from cluster.running import LocalCluster, running

CONNECT_SECONDS = 3.0
_DEFAULT_RAY_FILE = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 (written by `ray start`)


@dataclass(frozen=True)
class Endpoint:
    """Where a cluster is. At least one of `address` and `dashboard_url` is known."""

    address: str | None
    """host:port of the control service (GCS): what drivers connect to."""
    dashboard_url: str | None
    """http(s)://host:port: what jobs are sent to."""
    token_file: Path | None = None
    """Token of a local cluster of ours; None takes the user's own, if any."""


def resolve(address: str) -> Endpoint:
    """The endpoint behind `auto`, host:port or http(s)://host:port; something listens there.

    `auto` is RAY_ADDRESS, or else the newest local cluster of this user, or else what `ray start`
    has left running. Raises ClusterError within seconds.
    """
    known = running()
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _newest(known)
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address}: Ray Client is not supported; give HOST:PORT of the cluster (GCS), "
            "or http://HOST:PORT of its dashboard for jobs"
        )
    is_url = address.startswith(("http://", "https://"))
    probe(address)
    for one in known:
        if address.rstrip("/") in (one.address, one.dashboard_url):
            return Endpoint(one.address, one.dashboard_url, one.token_file)
    return Endpoint(None, address.rstrip("/")) if is_url else Endpoint(address, None)


def probe(address: str) -> None:
    """Raise ClusterError unless a TCP connection to host:port or a URL succeeds in seconds."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ClusterError(f"{address}: is no cluster address; give HOST:PORT, a URL, or auto")
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except UnicodeError:  # a label of the host is empty or too long
        raise ClusterError(f"{address}: {host} is no name of a host") from None
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ClusterError(f"{address}: no cluster can be reached there: {reason}") from None


def _newest(known: list[LocalCluster]) -> str:
    if known:
        return known[0].address
    if _DEFAULT_RAY_FILE.is_file():
        return _DEFAULT_RAY_FILE.read_text().strip()
    raise ClusterError("auto: no cluster runs here; give its address, or start one")
