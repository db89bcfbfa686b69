"""The doctor on this machine, on sick storage, and on clusters that are there and are not."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.session import Session
from orchestrator.doctor import Check, checks


def _by_name(results: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in results}


def test_finds_this_machine_fit(tmp_path: Path) -> None:
    results = checks(None, tmp_path / "not" / "there" / "yet")
    found = _by_name(results)
    assert list(found) == ["python", "packages", "devices", "memory", "storage", "loopback"]
    for name in ("python", "packages", "devices", "storage", "loopback"):
        assert found[name].ok, found[name]
    assert "torch" in found["packages"].detail
    assert not list(tmp_path.iterdir()), "looking changes nothing"
    assert json.loads(json.dumps([asdict(check) for check in results]))[0]["name"] == "python"


@pytest.mark.parametrize("place", ["a file", "a file/below", "/proc/nothing"])
def test_finds_unusable_storage(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    storage = _by_name(checks(None, tmp_path / place))["storage"]
    assert not storage.ok
    assert "cannot be written" in storage.detail


def test_finds_no_cluster() -> None:
    found = _by_name(checks("127.0.0.1:1", "."))
    assert not found["cluster"].ok
    assert "no cluster can be reached" in found["cluster"].detail
    assert "jobs" not in found


def test_finds_a_cluster_by_either_address(ray_cluster: Session) -> None:
    for address in (ray_cluster.address, ray_cluster.dashboard_url):
        found = _by_name(checks(address, "."))
        assert found["cluster"].ok, found["cluster"]
        assert ray_cluster.address in found["cluster"].detail
        assert found["jobs"].ok, found["jobs"]
        assert str(ray_cluster.dashboard_url) in found["jobs"].detail
