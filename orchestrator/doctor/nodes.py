"""What a cluster's nodes lack of what our workers need, as a job there finds it on each of them."""

import json
import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster.errors import ClusterError
from cluster.probe import ASKED, MARK
from orchestrator.doctor.requirements import required, unmet
from workers.config.base import Spec

if TYPE_CHECKING:
    from cluster.jobs import Job, JobClient

MODULES = (
    "workers.train.ray_worker",
    "workers.train.ray_process_group",
    "orchestrator.tuning.tuner",
    "orchestrator.tuning.searcher",
    "orchestrator.replicas.replica",
    "orchestrator.gateway.deployment",
)
"""What trials, their driver and an endpoint's replicas import when they start."""
RUN = ("python", "-c", "from cluster.probe import main; main()")
SHOWN = ("torch", "transformers", "ray")
NODE_SECONDS = 240.0
"""For a node that imports everything for the first time, from a slow disk; and for an autoscaler to
bring one, where none has a CPU."""
_MORE_SECONDS = 120.0
"""For the job itself to start and end."""


class NodeReport(Spec):
    """What the probe has found on one node."""

    host: str
    cpus: float
    gpus: float
    """That Ray counts."""
    python: str = ""
    executable: str = ""
    packages: dict[str, str | None] = Field(default_factory=dict)
    """Versions; None is missing."""
    broken: dict[str, str] = Field(default_factory=dict)
    """Modules that cannot be imported, and why."""
    gpus_seen: int = 0
    """That torch counts."""
    has_moetune: bool = False
    """Whether it is installed there, which an endpoint wants: jobs bring it along."""
    failed: str | None = None
    """Why nothing was found at all."""

    @property
    def faults(self) -> list[str]:
        """What keeps our workers from running there, in words."""
        if self.failed:
            return [f"nothing can be run: {self.failed}"]
        wrong = unmet(self.packages)
        wrong += [f"{name} cannot be imported: {why}" for name, why in self.broken.items()]
        if wrong:
            wrong.append(f"install them for {self.executable} (docs/distributed.md says what)")
        if self.gpus > self.gpus_seen:
            torch = self.packages.get("torch")
            wrong.append(f"Ray counts {self.gpus:g} GPUs, torch {torch} sees {self.gpus_seen}")
        return wrong

    def __str__(self) -> str:
        versions = [f"{name} {self.packages.get(name)}" for name in SHOWN]
        own = (
            "moetune" if self.has_moetune else "no moetune, which an endpoint wants (jobs bring it)"
        )
        room = f"{self.cpus:g} CPUs, {self.gpus:g} GPUs (torch sees {self.gpus_seen})"
        return f"{', '.join([f'Python {self.python}', *versions, own])}; {room}"


def probe(client: "JobClient") -> list[NodeReport]:
    """A report of each living node. Raises ClusterError where no job runs there."""
    asked = {
        "packages": [one.name for one in required()],
        "modules": MODULES,
        "seconds": NODE_SECONDS,
    }
    job_id = client.submit(RUN, files={ASKED: json.dumps(asked)})
    try:
        job = _ended(client, job_id, 2 * NODE_SECONDS + _MORE_SECONDS)
        return [NodeReport.model_validate(one) for one in _found(client, job)]
    finally:
        client.remove(job_id)


def _ended(client: "JobClient", job_id: str, seconds: float) -> "Job":
    from cluster.jobs import FINISHED

    deadline = time.monotonic() + seconds
    while (job := client.status(job_id)).state not in FINISHED:
        if time.monotonic() > deadline:
            raise ClusterError(f"a job does not end within {seconds:g} s: it is {job.state}")
        time.sleep(0.5)
    return job


def _found(client: "JobClient", job: "Job") -> Any:
    said = client.logs(job.id).splitlines()
    marked = [line.removeprefix(MARK) for line in said if line.startswith(MARK)]
    if marked:
        return json.loads(marked[-1])
    last = [line.strip() for line in said if line.strip()][-1:] or [job.message]
    raise ClusterError(f"a job {job.state.lower()} there: {last[0]}")
