"""How many trials may share a base: as many as the memory of a worker holds."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.inventory import Inventory
from cluster.placement import parts_on
from orchestrator.config.job import JobSpec, override_job
from orchestrator.doctor.demand import trial_demand
from orchestrator.doctor.trial_memory import TrialMemory, on_gpu
from workers.config.base import InputError
from workers.train.packed.key import check_packs

if TYPE_CHECKING:
    from workers.models.memory import MemoryEstimate

ASIDE = 2**30
"""Bytes of a worker that no estimate holds: Python and its libraries, or a GPU's context."""
FILLED = 0.8
"""Of what is left an estimate takes so much at the most: it is off by some, and what is freed
leaves gaps."""


@dataclass(frozen=True)
class PackRoom:
    """What a worker holds and has, by a job's largest trial."""

    trials: int
    """So many share a base."""
    memory: "MemoryEstimate"
    """Of a pack of them."""
    room: int | None
    """Bytes that there are for it; None where nobody knows."""
    most: int
    """So many fit, of `trials`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        own = {"trials": self.trials, "room": self.room, "most": self.most}
        return {**self.memory.as_dict(), **own}


class PackPlan:
    """Packs of a job's trials on such nodes. A pack holds trials as large as the largest."""

    def __init__(self, job: JobSpec, held: TrialMemory, there: Inventory) -> None:
        self._job, self._held = job, held
        self._trial = held.largest[0]
        self._at_once = min(job.search.max_concurrent, job.search.trials)
        nodes = zip(there.nodes, parts_on(trial_demand(job), there), strict=True)
        self._nodes = [(node, workers) for node, workers in nodes if workers]
        self._known = {1: held.largest[1]}

    @property
    def wanted(self) -> int:
        """As many as leave no worker without a pack, memory aside: on two GPUs eight trials at a
        time are two packs of four."""
        workers = sum(workers for _, workers in self._nodes)
        at_a_time = max(workers // self._job.train.parallel.max_workers, 1)
        return math.ceil(self._at_once / at_a_time)

    def room(self, size: int) -> int | None:
        """Bytes that a worker has for packs of so many; None where nobody knows."""
        if on_gpu(self._job, self._trial):
            return _gpu_bytes(self._job.search.gpus_per_worker)
        packs = math.ceil(self._at_once / size) * self._job.train.parallel.max_workers
        each = [node.memory_bytes // min(workers, packs) for node, workers in self._nodes]
        return min(filter(None, each), default=None)

    def largest(self, wanted: int) -> int | None:
        """The largest pack that fits, up to so many, or 1; None where nobody knows the room."""
        if self.room(1) is None:
            return None
        fits, above = 1, wanted + 1
        if self._fits(wanted):
            return wanted
        while above - fits > 1:
            middle = (fits + above) // 2
            fits, above = (middle, above) if self._fits(middle) else (fits, middle)
        return fits

    def of(self, size: int) -> PackRoom:
        """Of packs of so many."""
        return PackRoom(size, self._memory(size), self.room(size), self.largest(size) or size)

    def _fits(self, size: int) -> bool:
        room = self.room(size)
        return room is None or self._memory(size).total <= FILLED * (room - ASIDE)

    def _memory(self, size: int) -> "MemoryEstimate":
        if size not in self._known:
            self._known[size] = self._held.of(self._trial, size)
        return self._known[size]


def planned(job: JobSpec, held: TrialMemory, there: Inventory) -> PackRoom | None:
    """Of the packs that the job says; where it says none, of those that `auto` would make, if it
    would make any. InputError where the model's memory is not known."""
    plan, pack = PackPlan(job, held, there), job.search.pack
    if pack == 1 and not _can_share(job):
        return None
    size = pack if isinstance(pack, int) and pack > 1 else plan.largest(plan.wanted) or plan.wanted
    return None if (pack, size) == (1, 1) else plan.of(size)


def settled_pack(job: JobSpec, there: Inventory) -> JobSpec:
    """With a number in place of `search.pack: auto`. InputError where nobody knows one."""
    if job.search.pack != "auto":
        return job
    plan = PackPlan(job, TrialMemory(job), there)
    if (size := plan.largest(plan.wanted)) is None:
        raise InputError(
            "search.pack: auto wants to know how much memory a worker has, and this machine, which "
            "leads the study, does not see it; write a number"
        )
    return override_job(job, {"search.pack": size}, "search.pack")


def _can_share(job: JobSpec) -> bool:
    try:
        for trial in job.search_space().samples():
            check_packs(trial)
    except InputError:
        return False
    return True


def _gpu_bytes(gpus: float) -> int | None:
    """Of a worker's share of a GPU, as this process sees one; of several the smallest."""
    import torch

    count = torch.cuda.device_count()
    each = [torch.cuda.get_device_properties(at).total_memory for at in range(count)]
    return int(min(each) * min(gpus or 1, 1)) if each else None
