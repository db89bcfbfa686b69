"""What a job wants of a cluster, and how that goes with the nodes that are there."""

import math
import os
from collections.abc import Iterator

from cluster.inventory import Inventory, Node
from cluster.placement import Demand, fits, parts_on
from cluster.session import starts_here
from orchestrator.config.job import JobSpec
from orchestrator.config.serve import ServeSpec
from workers.config.base import InputError
from workers.run.memory import free_memory


def trial_demand(job: JobSpec, workers: int | None = None) -> Demand:
    """Of one trial, or of one pack of them, with its fewest workers unless told."""
    search, pack = job.search, _slots(job)
    each = search.cpus_per_worker, search.gpus_per_worker
    who = "a trial" if pack == 1 else f"a pack of {pack} trials"
    return Demand(who, "worker", workers or job.train.parallel.min_workers, *each)


def _slots(job: JobSpec) -> int:
    return job.search.pack if isinstance(job.search.pack, int) else 1


def endpoint_demand(serve: ServeSpec) -> Demand:
    """Of the endpoint's replicas."""
    each = serve.cpus_per_replica, serve.gpus_per_replica
    return Demand("the endpoint", "replica", serve.replicas, *each)


def too_small_here(job: JobSpec) -> str | None:
    """What this machine lacks for one trial, where it would run on a cluster that we start here;
    None otherwise: other clusters have sizes of their own."""
    if not starts_here(job.cluster.address):
        return None
    here, trial = this_machine(job), trial_demand(job)
    return None if fits(trial, here) else _short(trial, here, "this machine")


def this_machine(job: JobSpec) -> Inventory:
    """As a node, with the memory that is free. Its GPUs are counted if the job wants any."""
    gpus = _gpus_here() if job.search.gpus_per_worker else 0
    return Inventory((Node("here", "localhost", os.cpu_count() or 1, gpus, free_memory()),))


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def room_for(job: JobSpec, there: Inventory, grows: bool = True) -> Iterator[str]:
    """What such nodes mean for the job's trials and its endpoint, in one line each. InputError for
    a trial that never has room, where the cluster does not grow."""
    trial, endpoint = trial_demand(job), endpoint_demand(job.serve)
    if fits(trial, there):
        yield from _trials(job, there)
    elif grows:
        yield f"{_short(trial, there)}: it waits {job.search.wait_seconds:g} s for an autoscaler"
    else:
        raise InputError(f"{_short(trial, there)}, and does not grow")
    if not fits(endpoint, there):
        yield _short(endpoint, there)


def _trials(job: JobSpec, there: Inventory) -> Iterator[str]:
    parallel, trial = job.train.parallel, trial_demand(job)
    parts, at_once = parts_on(trial, there), min(job.search.max_concurrent, job.search.trials)
    wanted = math.ceil(at_once / _slots(job))
    at_once = min(sum(parts) // trial.count, wanted)
    less = f", {wanted} are wanted (search.max_concurrent)" * (at_once < wanted)
    yield f"{_short(trial, there)}: room for {at_once} at a time{less}"
    if not fits(most := trial_demand(job, parallel.max_workers), there):
        yield f"{_short(most, there)}: it takes as many workers as have room"
    if parallel.ep_size > max(parts):
        yield (
            f"parallel.ep_size: {parallel.ep_size} workers share the experts, and a node holds "
            f"{max(parts)} of them at most: the exchange goes over the network"
        )


def _short(demand: Demand, there: Inventory, place: str = "the cluster") -> str:
    return f"{demand.who} wants {demand}; {place} has {there}"
