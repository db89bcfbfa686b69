"""What the user means by an address, and whether anything answers there."""

import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import ClusterError
from cluster.running import LocalCluster, running

CONNECT_SECONDS = 3.0
_DEFAULT_RAY_FILE = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 (written by `ray start`)


@dataclass(frozen=True)
class ClusterAddress:
    """Where a cluster is. At least one of `address` and `dashboard_url` is known."""

    address: str | None
    """host:port of the control service (GCS): what drivers connect to."""
    dashboard_url: str | None
    """http(s)://host:port: what jobs are sent to."""
    token_file: Path | None = None
    """Token of a local cluster of ours; None takes the user's own, if any."""


def resolve(address: str) -> ClusterAddress:
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
    plain = address.rstrip("/").replace("localhost:", "127.0.0.1:", 1)
    for one in known:
        if plain in (one.address, one.dashboard_url):
            return ClusterAddress(one.address, one.dashboard_url, one.token_file)
    return ClusterAddress(None, address.rstrip("/")) if is_url else ClusterAddress(address, None)


def probe(address: str) -> None:
    """Raise ClusterError unless a TCP connection to host:port or a URL succeeds in seconds."""
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except UnicodeError:  # a label of the host is empty or too long
        raise ClusterError(f"{address}: {host} is no name of a host") from None
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ClusterError(f"{address}: no cluster can be reached there: {reason}") from None


def answers(address: str) -> bool:
    """Whether something listens at host:port or a URL."""
    try:
        probe(address)
    except ClusterError:
        return False
    return True


def on_loopback(address: str) -> bool:
    """Whether host:port or a URL is reached from its own machine only."""
    return is_loopback(_host_and_port(address)[0])


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine reaches `host`."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ClusterError(f"{address}: is no cluster address; give HOST:PORT, a URL, or auto")
    return host, port


def _newest(known: list[LocalCluster]) -> str:
    if known:
        return known[0].address
    started = _started()
    if len(started) > 1:
        raise ClusterError(
            f"auto: several clusters run here: {', '.join(started)}; name one by --address"
        )
    if not started:
        raise ClusterError("auto: no cluster runs here; give its address, or start one")
    return started[0]


def _started() -> list[str]:
    """What `ray start` has left running here: the one that it started last, or where its file of
    that does not say so (another temporary folder), all whose processes there are."""
    if _DEFAULT_RAY_FILE.is_file() and answers(last := _DEFAULT_RAY_FILE.read_text().strip()):
        return [last]
    from ray._private.services import find_gcs_addresses

    return sorted(address for address in find_gcs_addresses() if answers(address))
