"""Whether what a job wants at the same time has room on a cluster, and where."""

from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.inventory import Inventory


@dataclass(frozen=True)
class Demand:
    """Trials that run side by side, each of equal workers. A worker lies within one node."""

    trials: int
    workers: int
    cpus: float
    """CPUs of one worker."""
    gpus: float = 0.0
    """GPUs of one worker."""

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.workers} workers of {self.cpus:g} CPUs{gpus}"


def trials_that_fit(demand: Demand, there: Inventory) -> int:
    """How many of the trials have room at once; the others would wait."""
    workers = sum(_workers_on(node.cpus, node.gpus, demand) for node in there.nodes)
    return min(demand.trials, workers // demand.workers)


def check_fit(demand: Demand, there: Inventory) -> None:
    """ClusterError if not even one trial has room: it would wait for ever."""
    if trials_that_fit(demand, there) == 0:
        raise ClusterError(
            f"placement: a trial wants {demand}, which has no room on the cluster: {there}"
        )


def _workers_on(cpus: float, gpus: float, demand: Demand) -> int:
    rooms = [int(cpus / demand.cpus + 1e-9)] if demand.cpus else []
    if demand.gpus:
        rooms.append(int(gpus / demand.gpus + 1e-9))
    return min(rooms, default=demand.trials * demand.workers)
