"""Ray Jobs: send code to a cluster to run there, and see what becomes of it."""

import asyncio
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster import environment
from cluster.address import resolve
from cluster.errors import ClusterError
from cluster.handshake import ANSWER_SECONDS, bearer, check_dashboard, find_dashboard
from cluster.inventory import Inventory, Node
from cluster.notes import SUBMITTED, note_name
from cluster.staging import staged

if TYPE_CHECKING:
    import httpx

FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")
_MOST_NODES = 10_000  # more the dashboard does not tell
_WRITTEN_AGAIN_SECONDS = 4.0
"""Ray looks after a job once a second, and writes one that it finds gone on its list as failed."""
_PYTHON_FILE = "cluster_python.sh"
_PYTHON = r"""# Runs the Python that the cluster's own workers run with, as the raylet above us was
# told it: the one on PATH may be another, or none.
python=python
pid=$PPID
while [ "${pid:-0}" -gt 1 ]; do
  theirs=$(tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" |
    sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
  [ -x "$theirs" ] && python=$theirs && break
  pid=$(sed 's/.*) [A-Z] \([0-9]*\) .*/\1/' "/proc/$pid/stat" 2>/dev/null)
done
exec "$python" "$@"
"""


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    id: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    metadata: dict[str, str]
    message: str
    """What Ray says about the state."""
    started: float | None
    """Seconds since 1970."""
    ended: float | None
    driver: str | None = None
    """Ray's own id of the job, once its driver has joined the cluster."""
    node: str | None = None
    """Id of the node that the driver runs on."""


class JobClient:
    """The jobs of one cluster. Every method raises ClusterError."""

    def __init__(self, address: str = "auto") -> None:
        """`address`: http://host:port of a dashboard, host:port of the cluster (GCS), or auto."""
        endpoint = resolve(address)
        self.dashboard_url = endpoint.dashboard_url or find_dashboard(endpoint)
        self.grows = endpoint.token_file is None
        """Whether the cluster may get more nodes: a local one of ours does not."""
        self._headers = bearer(endpoint)
        check_dashboard(self.dashboard_url, self._headers)
        from ray.job_submission import JobSubmissionClient

        for module in ("dashboard_sdk", "job.sdk"):  # they tell of every upload
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
        with self._errors():
            self._client = JobSubmissionClient(self.dashboard_url, headers=self._headers)

    def submit(
        self,
        entrypoint: Sequence[str],
        *,
        files: Mapping[str, str] | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command in a copy of our code; the id of the job. `python` as its first word is
        the Python that the cluster runs with.

        `files` (name: text) lie beside the packages, in the working directory of the command.
        `name` becomes the id; it must be new on the cluster. The driver reserves no CPU.
        """
        if entrypoint[0] == "python":
            entrypoint = ["sh", _PYTHON_FILE, *entrypoint[1:]]
        with staged({_PYTHON_FILE: _PYTHON, **(files or {})}) as folder, self._errors():
            return str(
                self._client.submit_job(
                    entrypoint=shlex.join(entrypoint),
                    submission_id=name,
                    metadata=dict(metadata or {}),
                    runtime_env={
                        "working_dir": str(folder),
                        "env_vars": {**environment.DRIVER, SUBMITTED: "1", **(env or {})},
                    },
                    entrypoint_num_cpus=0,
                )
            )

    def list(self) -> list[Job]:
        """All submitted jobs, newest first."""
        with self._errors():
            details = self._client.list_jobs()
        jobs = [_job(one) for one in details if one.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0, reverse=True)

    def status(self, job_id: str) -> Job:
        """One job."""
        with self._errors(job_id):
            return _job(self._client.get_job_info(job_id))

    def find(self, name: str) -> Job:
        """The job of this id, or the latest of the study of this name."""
        found = [job for job in self.list() if name in (job.id, job.metadata.get("study"))]
        same = [job for job in found if job.id == name] or found
        return same[0] if same else self.status(name)

    def note(self, job: Job) -> str | None:
        """What the job's driver wrote last with `cluster.notes`, if anything."""
        if not (job.driver and job.node):
            return None
        asked = {"node_id": job.node, "filename": note_name(job.driver), "lines": 1}
        reply = self._get("logs/file", asked)
        return reply.text.strip() or None if reply.is_success else None

    def logs(self, job_id: str) -> str:
        """What the job has printed up to now."""
        with self._errors(job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What the job prints, piece by piece, until it ends."""
        self.status(job_id)
        with asyncio.Runner() as runner, self._errors(job_id):
            pieces = self._client.tail_job_logs(job_id)
            while (piece := runner.run(_next(pieces))) is not None:
                yield piece

    def stop(self, job_id: str) -> bool:
        """Ask the job to end; False if it had ended already."""
        with self._errors(job_id):
            return bool(self._client.stop_job(job_id))

    def remove(self, job_id: str, seconds: float = 20.0) -> None:
        """Take the job off the cluster's list; it is stopped if it runs, and stays on the list
        where it does not end within `seconds`."""
        self.stop(job_id)
        end = time.monotonic() + seconds
        while self.status(job_id).state not in FINISHED:
            if time.monotonic() > end:
                return
            time.sleep(0.2)
        again = time.monotonic() + _WRITTEN_AGAIN_SECONDS
        while time.monotonic() < again:
            if job_id in [job.id for job in self.list()]:
                with self._errors(job_id):
                    self._client.delete_job(job_id)
            time.sleep(0.5)

    def nodes(self) -> Inventory:
        """The living nodes of the cluster, by its dashboard alone."""
        asked = {"limit": _MOST_NODES, "filter_keys": "state", "filter_predicates": "="}
        reply = self._get("nodes", {**asked, "filter_values": "ALIVE"})
        if not reply.is_success:
            raise ClusterError(f"{self.dashboard_url}: does not tell the cluster's nodes")
        return Inventory(tuple(map(_node, reply.json()["data"]["result"]["result"])))

    def _get(self, path: str, asked: Mapping[str, Any]) -> "httpx.Response":
        import httpx

        try:
            return httpx.get(
                f"{self.dashboard_url}/api/v0/{path}",
                params=asked,
                headers=self._headers,
                timeout=ANSWER_SECONDS,
            )
        except httpx.HTTPError as error:
            raise ClusterError(f"{self.dashboard_url}: {error}") from None

    @contextmanager
    def _errors(self, job_id: str | None = None) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            # The dashboard answers with a whole traceback; its last line says what was wrong.
            line = " ".join(str(error).split()).rpartition("Error: ")[2].rstrip(" .")
            if job_id is not None and "status code 404" in line:
                line = f"job {job_id}: no such job"
            raise ClusterError(f"{self.dashboard_url}: {line}") from error


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        state=str(details.status.value),
        entrypoint=details.entrypoint,
        metadata=dict(details.metadata or {}),
        message=" ".join((details.message or "").split()),
        started=details.start_time and details.start_time / 1000,
        ended=details.end_time and details.end_time / 1000,
        driver=details.job_id,
        node=details.driver_node_id,
    )


def _node(told: Mapping[str, Any]) -> Node:
    has = told["resources_total"]
    memory = int(has.get("memory", 0))
    return Node(told["node_id"], told["node_ip"], has.get("CPU", 0.0), has.get("GPU", 0.0), memory)


async def _next(pieces: Any) -> str | None:
    return await anext(pieces, None)
