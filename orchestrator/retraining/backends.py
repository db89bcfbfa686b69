"""Where trainings run: here, or on a cluster as Ray Jobs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.config.job import JobSpec
from workers.config.base import InputError

if TYPE_CHECKING:
    from cluster.jobs import JobClient


@dataclass(frozen=True)
class End:
    """A training has ended."""

    failed: str | None = None
    """Why it failed."""


class Runs(Protocol):
    """Runs jobs' studies. Raises InputError, and ClusterError where there is no cluster for it."""

    def start(self, job: JobSpec) -> None:
        """Begin; may return only when all is done."""
        ...

    def end(self, study: str) -> End | None:
        """How it ended; None while it runs."""
        ...


class HereRuns:
    """In this process, on the cluster that it is connected to, or else a local one, until all is
    done."""

    def start(self, job: JobSpec) -> None:
        """See `Runs`."""
        from cluster.session import session
        from orchestrator.monitoring.console import Narrator
        from orchestrator.monitoring.display import study_display
        from orchestrator.tuning.preflight import preflight
        from orchestrator.tuning.tuner import run

        preflight(job)
        with session(), study_display(job, Narrator()) as display:
            run(job, on_progress=display)

    def end(self, study: str) -> End | None:  # noqa: ARG002
        """See `Runs`. What was cut off with its process runs no more."""
        return End()


@dataclass(frozen=True)
class ClusterRuns:
    """As jobs of a cluster, which outlive this process."""

    client: "JobClient"

    def start(self, job: JobSpec) -> None:
        """See `Runs`."""
        from orchestrator.tuning.submit import submit

        submit(self.client, job, id=job.name)

    def end(self, study: str) -> End | None:
        """See `Runs`."""
        from cluster.errors import ClusterError
        from cluster.jobs import FINISHED

        try:
            job = self.client.status(study)
        except ClusterError as error:
            if "no such job" not in str(error):
                raise InputError(str(error)) from None
            return End(str(error))
        if job.state not in FINISHED:
            return None
        return End(None if job.state == "SUCCEEDED" else job.message or job.state)
