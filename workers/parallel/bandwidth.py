"""How fast the workers of a group send to one another."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from workers.parallel.cost import Bandwidth
from workers.parallel.world import World

NUMBERS = 1 << 20
"""Float32 numbers that a worker has for the others in one try."""
TRIES = 3


def measure(group: World, device: torch.device) -> Bandwidth:
    """All-to-alls and all-gathers between the workers of `group`; the same figures on all workers,
    those of the slowest one. A collective of all workers."""
    mine = torch.ones(NUMBERS // group.size * group.size, device=device)
    theirs = torch.empty_like(mine)
    whole = mine.new_empty(group.size * len(mine))
    sent = mine.numel() * mine.element_size() * (group.size - 1)
    tokens = _seconds(lambda: dist.all_to_all_single(theirs, mine, group=group.group), device)
    weights = _seconds(lambda: dist.all_gather_single(whole, mine, group=group.group), device)
    return Bandwidth(sent / group.size / tokens, sent / weights)


def _seconds(send: Callable[[], object], device: torch.device) -> float:
    """Of the fastest try, on the slowest worker."""
    tries = []
    for _ in range(TRIES + 1):
        started = time.perf_counter()
        send()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        tries.append(time.perf_counter() - started)
    fastest = torch.tensor(min(tries[1:]), dtype=torch.float64, device=device)
    dist.all_reduce(fastest, dist.ReduceOp.MAX)
    return float(fastest)
