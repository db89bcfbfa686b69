"""Jobs on a real cluster: sent, followed, stopped, seen in the dashboard's own API."""

import sys
import time
from pathlib import Path

import httpx
import pytest

from cluster.errors import ClusterError
from cluster.inventory import inventory
from cluster.jobs import FINISHED, JobClient
from cluster.session import Session
from cluster.staging import PACKAGES, staged

CODE = """
import os, sys, cluster.jobs
print("python", sys.executable)
print("argument", sys.argv[1])
print("file", open("job.json").read())
print("ours", cluster.jobs.__file__.startswith(os.getcwd()))
print("variable", os.environ["MOETUNE_TEST"], os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"])
from cluster.session import session
with session() as joined:
    print("joined", joined.address, joined.owned, flush=True)
"""


@pytest.fixture(scope="module")
def client(ray_cluster: Session) -> JobClient:
    """A client found by the address of the control service alone."""
    client = JobClient(ray_cluster.address)
    assert client.dashboard_url == ray_cluster.dashboard_url
    return client


def test_runs_our_code_with_its_files(client: JobClient, ray_cluster: Session) -> None:
    job_id = client.submit(
        ["python", "-c", CODE, "two words; $HOME"],
        files={"job.json": '{"name": "x"}'},
        metadata={"study": "x"},
        env={"MOETUNE_TEST": "7", "PATH": "/usr/bin:/bin"},  # where no Python of ours is
    )
    printed = "".join(client.follow(job_id))
    for line in (
        f"python {sys.executable}",
        "argument two words; $HOME",
        'file {"name": "x"}',
        "ours True",
        "variable 7 0.2",
        f"joined {ray_cluster.address} False",
    ):
        assert line in printed.splitlines()
    assert printed == client.logs(job_id)
    job = client.status(job_id)
    assert (job.state, job.metadata, job.id) == ("SUCCEEDED", {"study": "x"}, job_id)
    assert job.started is not None
    assert job.ended is not None
    assert 0 < job.ended - job.started < 120
    assert job in client.list()
    assert client.find("x") == client.find(job_id) == job
    assert client.stop(job_id) is False
    with pytest.raises(ClusterError, match=r"already exists[^\n]*$"):
        client.submit(["true"], name=job_id)

    assert ray_cluster.token_file is not None
    token = {"Authorization": f"Bearer {ray_cluster.token_file.read_text()}"}
    jobs = httpx.get(f"{ray_cluster.dashboard_url}/api/jobs/", headers=token).json()
    assert [one["status"] for one in jobs if one["submission_id"] == job_id] == ["SUCCEEDED"]
    assert httpx.get(f"{ray_cluster.dashboard_url}/api/jobs/").status_code == 401


def test_stops_and_tells_of_failure(client: JobClient) -> None:
    waiting = client.submit(["sleep", "100"], name="waiting")
    failing = client.submit(["python", "-c", "print('so far'); raise SystemExit(3)"])
    assert "so far" in "".join(client.follow(failing))
    job = client.status(failing)
    assert job.state == "FAILED"
    assert "3" in job.message
    assert waiting == "waiting"
    assert client.stop(waiting) is True
    end = time.monotonic() + 60
    while client.status(waiting).state not in FINISHED and time.monotonic() < end:
        time.sleep(0.3)
    assert client.status(waiting).state == "STOPPED"


def test_removes_jobs_that_run_and_that_have_ended(client: JobClient) -> None:
    ended = client.submit(["true"])
    "".join(client.follow(ended))
    running = client.submit(["sleep", "100"])
    for job_id in (ended, running):
        client.remove(job_id)
        assert job_id not in [job.id for job in client.list()]


def test_tells_the_clusters_nodes(client: JobClient, ray_cluster: Session) -> None:
    assert client.nodes() == inventory()
    assert client.nodes().cpus == 4
    assert not client.grows


def test_says_which_job_is_unknown(client: JobClient) -> None:
    asks = (client.find, client.status, client.logs, client.stop, client.remove)
    for ask in (*asks, lambda name: list(client.follow(name))):
        with pytest.raises(ClusterError, match=r"job nothing: no such job$"):
            ask("nothing")


def test_ships_the_packages_and_nothing_else() -> None:
    with staged({"job.json": "{}"}) as folder:
        assert {path.name for path in folder.iterdir()} == {*PACKAGES, "job.json"}
        assert (folder / "workers" / "config" / "train.py").is_file()
        assert not list(folder.rglob("__pycache__"))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert size < 4 * 2**20
    assert not Path(folder).exists()
