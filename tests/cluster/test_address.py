"""Addresses that lead nowhere are refused in seconds, with one line."""

import time

import pytest

from cluster.address import ClusterAddress, resolve
from cluster.errors import ClusterError
from cluster.handshake import check_cluster, check_dashboard, reach
from cluster.session import Session, check_joinable


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "is no cluster address"),
        ("localhost:port", "is no cluster address"),
        ("localhost:99999", "is no cluster address"),
        ("", "is no cluster address"),
        ("http://[::1", "is no cluster address"),
        ("head..lan:6379", "is no name of a host"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
        ("no-such-host.invalid:6379", "no cluster can be reached"),
    ],
)
def test_refuses_what_is_no_address(address: str, says: str) -> None:
    with pytest.raises(ClusterError, match=says) as caught:
        resolve(address)
    assert "\n" not in str(caught.value)


def test_refuses_a_closed_port_at_once(refused_address: str) -> None:
    begun = time.monotonic()
    for address in (refused_address, f"http://{refused_address}"):
        with pytest.raises(ClusterError, match=r"no cluster can be reached .*refused"):
            resolve(address)
    assert time.monotonic() - begun < 2


def test_refuses_a_silent_port_in_seconds(silent_address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ClusterError, match="no Ray cluster"):
        check_cluster(silent_address)
    with pytest.raises(ClusterError, match="no dashboard answers"):
        check_dashboard(f"http://{silent_address}", {})
    assert time.monotonic() - begun < 12


def test_what_cannot_be_joined_is_told_before_anything_is_done(silent_address: str) -> None:
    with pytest.raises(ClusterError, match=r"is a dashboard, .* give HOST:PORT"):
        check_joinable(f"http://{silent_address}")


def test_finds_our_own_cluster_by_each_of_its_addresses(ray_cluster: Session) -> None:
    ours = ClusterAddress(ray_cluster.address, ray_cluster.dashboard_url, ray_cluster.token_file)
    assert resolve(ray_cluster.address) == ours
    assert resolve(f"{ray_cluster.dashboard_url}/") == ours
    assert ray_cluster.address in reach(ray_cluster.address)
    check_joinable(ray_cluster.address)
    check_joinable(f"{ray_cluster.dashboard_url}")


def test_tells_a_dashboard_from_another_server(ray_cluster: Session) -> None:
    with pytest.raises(ClusterError, match="wants its token"):
        check_dashboard(str(ray_cluster.dashboard_url), {})
    with pytest.raises(ClusterError, match="wants its token"):
        check_dashboard(str(ray_cluster.dashboard_url), {"Authorization": "Bearer wrong"})
    with pytest.raises(ClusterError, match=r"no Ray dashboard|no dashboard answers"):
        check_dashboard(f"http://{ray_cluster.address}", {})
