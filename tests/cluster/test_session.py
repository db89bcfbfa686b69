"""Clusters of our own: closed to others, found by ours, gone with their owner."""

import json
import signal
import socket
import stat
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.session import Session, check_joinable, session
from tests.cluster.conftest import Start
from tests.listening import cluster_processes, listeners
from tests.orchestrator.browser import browser

OWNER = """
import json, sys, time
from cluster.session import session
with session(num_cpus=1) as s:
    print(json.dumps([s.address, s.dashboard_url]), flush=True)
    time.sleep(120)
"""
JOINER = """
import json, sys
from cluster.errors import ClusterError
from cluster.session import session
try:
    with session(sys.argv[1]) as s:
        import ray
        print(json.dumps([s.address, s.dashboard_url, s.owned, ray.cluster_resources()["CPU"]]))
except ClusterError as error:
    print(json.dumps(str(error)))
"""


def _gone(folder: Path, process: subprocess.Popen[str], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    process.wait(seconds)
    while time.monotonic() < end and cluster_processes(folder):
        time.sleep(0.2)
    return not cluster_processes(folder)


def test_listens_on_loopback_only(ray_cluster: Session) -> None:
    """A cluster with nothing on it; tests/test_listening.py has one that trains and serves."""
    assert ray_cluster.token_file is not None
    processes = cluster_processes(ray_cluster.token_file.parent)
    there = listeners(processes)
    assert len(processes) >= 4
    assert len(there) >= 6
    assert [one for one in there if not one.on_loopback] == []


def test_keeps_the_token_to_this_user(ray_cluster: Session) -> None:
    file = ray_cluster.token_file
    assert file is not None
    token = file.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700
    for process in cluster_processes(file.parent):
        assert token not in " ".join(process.cmdline())
        assert token not in process.environ().values()
    for path in file.parent.rglob("*"):
        if path != file and path.is_file() and not path.is_symlink():
            assert token.encode() not in path.read_bytes(), f"{path} holds the token"


def test_joins_its_own_process(ray_cluster: Session) -> None:
    for address in (None, "auto", ray_cluster.address, ray_cluster.dashboard_url):
        with session(address) as joined:
            assert joined.address == ray_cluster.address
            assert joined.dashboard_url == ray_cluster.dashboard_url
            assert joined.token_file == ray_cluster.token_file
            assert not joined.owned
    with (
        pytest.raises(ClusterError, match="connected to another cluster"),
        session("10.0.0.1:6379"),
    ):
        pass
    import ray

    assert ray.is_initialized(), "who joins does not end the connection"


def test_refuses_a_wrong_token_and_a_dashboard_in_seconds(
    ray_cluster: Session, start: Start, silent_address: str
) -> None:
    cases = {
        ray_cluster.address: "wants its token",
        str(ray_cluster.dashboard_url): "takes submitted jobs only",
        silent_address: "no Ray cluster",
    }
    begun = time.monotonic()
    joiners = {
        address: start(JOINER, address, RAY_AUTH_TOKEN="0" * 64, RAY_AUTH_MODE="token")
        for address in cases
    }
    for address, process in joiners.items():
        said = json.loads(process.communicate(timeout=40)[0])
        assert cases[address] in said
        assert said.startswith(address if "://" not in address else address.rstrip("/"))
    assert time.monotonic() - begun < 30


STRANGER = """
import signal, sys, time
from cluster.session import session
def told(*_):
    print("told", flush=True)
    raise SystemExit(7)
signal.signal(signal.SIGTERM, told)
with session(sys.argv[1]) as s:
    print(s.address, flush=True)
    time.sleep(120)
"""


def test_a_stranger_joins_by_a_loopback_address_and_keeps_its_sigterm(
    ray_cluster: Session, start: Start
) -> None:
    assert ray_cluster.token_file is not None
    port = ray_cluster.address.rpartition(":")[2]
    token = {"RAY_AUTH_TOKEN": ray_cluster.token_file.read_text(), "RAY_AUTH_MODE": "token"}
    stranger = start(STRANGER, f"localhost:{port}", **token)
    assert stranger.stdout is not None
    assert stranger.stdout.readline() == f"{ray_cluster.address}\n"
    stranger.send_signal(signal.SIGTERM)
    said, _ = stranger.communicate(timeout=30)
    assert (said, stranger.returncode) == ("told\n", 7)


def test_a_cluster_without_a_node_here_is_refused_in_seconds(
    ray_cluster: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.services.find_node_ids", set)  # as behind a forwarded port
    with pytest.raises(ClusterError, match="none of the cluster's 1 nodes runs on this machine"):
        check_joinable(ray_cluster.address)


def test_a_cluster_of_another_temporary_folder_is_found(ray_cluster: Session, start: Start) -> None:
    code = "from cluster.address import resolve\nprint(resolve('auto').address)"
    said = "".join(start(code).communicate(timeout=60))  # with others here, it names all
    assert ray_cluster.address in said


@pytest.mark.usefixtures("chromium")
def test_the_dashboard_opens_with_the_token_that_the_command_shows(
    ray_cluster: Session, tmp_path: Path
) -> None:
    command = str(ray_cluster.showing_token)
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    jobs = "fetch('/api/jobs/').then(reply => reply.status)"
    with browser(tmp_path / "profile") as page:
        page.open(str(ray_cluster.dashboard_url))
        page.until("document.querySelector('[role=dialog] input') !== null")
        assert page.js(jobs) == 401
        page.js("document.querySelector('[role=dialog] input').focus()")
        page.do("Input.insertText", text=shown.stdout)
        page.js("[...document.querySelectorAll('[role=dialog] button')].at(-1).click()")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with suppress(AssertionError):  # the page is loading again
                if page.js(jobs) == 200:
                    break
        page.until("document.readyState === 'complete'")
        assert page.js("document.querySelector('[role=dialog]') === null")


def test_waiting_ends_with_the_head(ray_cluster: Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        cluster = replace(ray_cluster, address=address)
        threading.Timer(1, head.close).start()
        begun = time.monotonic()
        with pytest.raises(ClusterError, match=f"{address}: the cluster's head is gone"):
            cluster.wait()
    assert 1 < time.monotonic() - begun < 30


def test_is_found_by_other_processes_and_ends_with_ctrl_c(start: Start, short_tmp: Path) -> None:
    owner = start(OWNER)
    assert owner.stdout is not None
    address, dashboard = json.loads(owner.stdout.readline())
    for given in ("auto", address):
        said = json.loads(start(JOINER, given).communicate(timeout=60)[0])
        assert said == [address, dashboard, False, 1.0]
    assert cluster_processes(short_tmp)
    owner.send_signal(signal.SIGINT)
    assert _gone(short_tmp, owner)
    assert [path.name for path in short_tmp.glob("moetune-*/*")] == ["lock"], "files left behind"
    assert "no cluster" in json.loads(start(JOINER, address).communicate(timeout=60)[0])


def test_ends_when_its_owner_is_killed(start: Start, short_tmp: Path) -> None:
    owner = start(OWNER)
    assert owner.stdout is not None
    assert owner.stdout.readline()
    owner.kill()
    assert _gone(short_tmp, owner)
    leftover = [path for path in short_tmp.glob("moetune-*/*") if path.is_dir()]
    assert leftover, "a killed owner cannot tidy up"
    code = (
        "from cluster.running import claimed, running\nassert not running()\nwith claimed(): pass"
    )
    assert start(code).wait(30) == 0
    assert not any(path.exists() for path in leftover), "the next owner tidies up"
