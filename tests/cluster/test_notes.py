"""What a job's driver says of itself, as the dashboard alone hands it out."""

import time

from cluster.jobs import JobClient
from cluster.notes import own_note
from cluster.session import Session

CODE = """
import time
from cluster.notes import own_note
from cluster.session import session
with session() as joined:
    note = own_note(joined)
    for count in range(600):
        note.write('{"count": %d, "word": "größer"}' % count)
        time.sleep(0.1)
"""


def test_only_a_submitted_jobs_driver_has_one(ray_cluster: Session) -> None:
    assert own_note(ray_cluster) is None
    assert ray_cluster.log_folder is not None
    assert (ray_cluster.log_folder / "raylet.out").exists()


def test_it_is_read_while_the_job_runs_and_after(ray_cluster: Session) -> None:
    assert ray_cluster.dashboard_url is not None
    client = JobClient(ray_cluster.dashboard_url)
    job_id = client.submit(["python", "-c", CODE])
    try:
        first = until_another(client, job_id, None)
        assert first.startswith('{"count": ')
        assert first.endswith('"word": "größer"}')
        second = until_another(client, job_id, first)
        assert second != first
    finally:
        client.stop(job_id)
    end = time.monotonic() + 60
    while client.status(job_id).state == "RUNNING" and time.monotonic() < end:
        time.sleep(0.2)
    assert client.note(client.status(job_id)) is not None


def test_a_job_that_says_nothing_has_none(ray_cluster: Session) -> None:
    client = JobClient(ray_cluster.address)
    job_id = client.submit(["true"])
    for _ in client.follow(job_id):
        pass
    assert client.note(client.status(job_id)) is None


def until_another(client: JobClient, job_id: str, known: str | None) -> str:
    """The note, once it is another one than `known`."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        note = client.note(client.status(job_id))
        if note and note != known:
            return note
        time.sleep(0.2)
    raise AssertionError(f"no note but {known}; {client.logs(job_id)}")
