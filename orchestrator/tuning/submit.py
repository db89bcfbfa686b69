"""Sending a tuning job, with the code, to a cluster."""

from typing import TYPE_CHECKING

from orchestrator.config.job import JobSpec, dump_job, override_job, portable

if TYPE_CHECKING:
    from cluster.jobs import JobClient


def submit(
    client: "JobClient",
    job: JobSpec,
    resume: bool = False,
    id: str | None = None,
    *,
    accept_new_data: bool = False,
) -> str:
    """Run the job's study there as a Ray Job, of this new id if one is given; its id. Raises
    ClusterError."""
    # It runs where it is sent.
    sent = override_job(portable(job), {"cluster.address": None}, f"job {job.name}")
    how = ["--storage", sent.cluster.storage]  # whatever the cluster's environment says
    how += ["--resume"] * resume + ["--accept-new-data"] * accept_new_data
    return client.submit(
        ["python", "-m", "orchestrator.cli", "tune", "job.json", *how],
        files={"job.json": dump_job(sent)},
        name=id,
        metadata={"study": job.name},
    )
