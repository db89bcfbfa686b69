"""Room on the connected cluster for what must run at the same time: there, or waited for."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.inventory import Inventory, inventory
from cluster.running import running

WAIT_SECONDS = 600.0
"""An autoscaler brings a node in minutes."""
_SOON_SECONDS = 2.0


@dataclass(frozen=True)
class Demand:
    """Equal parts that run at the same time. A part lies within one node."""

    who: str
    """Who wants it, as in `a trial`."""
    part: str
    """What a part is called, as in `worker`."""
    count: int
    cpus: float
    """CPUs of one part."""
    gpus: float = 0.0
    """GPUs of one part."""

    def __str__(self) -> str:
        wanted = [(self.cpus, "CPU")] + [(self.gpus, "GPU")] * (self.gpus > 0)
        each = " and ".join(f"{size:g} {name}{'s' * (size != 1)}" for size, name in wanted)
        return f"{self.count} {self.part}{'s' * (self.count != 1)} of {each}"

    @property
    def bundles(self) -> list[dict[str, float]]:
        """A part's resources for each part, as Ray names them; empty where none are wanted."""
        each = {"CPU": self.cpus, "GPU": self.gpus}
        wanted = {name: size for name, size in each.items() if size}
        return [wanted] * self.count if wanted else []


def parts_on(demand: Demand, there: Inventory) -> list[int]:
    """How many of its parts each node could hold if nothing else ran; at most as many as it has
    where they want nothing."""
    return [_parts_on(node.cpus, node.gpus, demand) for node in there.nodes]


def fits(demand: Demand, there: Inventory) -> bool:
    """Whether the nodes could hold it if nothing else ran."""
    return sum(parts_on(demand, there)) >= demand.count


def say(text: str) -> None:
    """Tell people on stderr."""
    print(f"moetune: {text}", file=sys.stderr, flush=True)


def wait_for_room(
    demand: Demand, seconds: float = WAIT_SECONDS, tell: Callable[[str], None] = say
) -> None:
    """Wait until the connected cluster has free room for it, which its autoscaler is asked for.

    ClusterError where there is none in time; at once where the cluster is a local one of ours,
    which does not grow. `tell` hears what is waited for.
    """
    there = inventory()
    room = fits(demand, there)
    if not room and _is_local():
        raise ClusterError(f"{demand.who} wants {demand}, and has no room on the cluster: {there}")
    why = f"the cluster has {there}, "
    why += "others hold them" if room else "its autoscaler was asked, if it has one"
    with _asked_for(demand) as came:
        if came(min(seconds, _SOON_SECONDS)):
            return
        tell(f"{demand.who} waits for {demand}, at most {seconds:g} s: {why}")
        if not came(seconds):
            raise ClusterError(f"{demand.who} waited {seconds:g} s for {demand}: {why}")


@contextmanager
def _asked_for(demand: Demand) -> Iterator[Callable[[float], bool]]:
    """The demand as Ray's scheduler and autoscaler know it, until the block ends. `came(seconds)`
    waits for so long, and says whether there is room."""
    from ray.util.placement_group import placement_group, remove_placement_group

    if not demand.bundles:
        yield lambda _: True
        return
    group = placement_group(demand.bundles)

    def came(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (there := group.wait(min(1.0, seconds))) and time.monotonic() < end:
            pass  # in short waits, which Ctrl-C ends
        return bool(there)

    try:
        yield came
    finally:
        remove_placement_group(group)


def _is_local() -> bool:
    import ray

    return ray.get_runtime_context().gcs_address in [one.address for one in running()]


def _parts_on(cpus: float, gpus: float, demand: Demand) -> int:
    rooms = [int(cpus / demand.cpus + 1e-9)] if demand.cpus else []
    if demand.gpus:
        rooms.append(int(gpus / demand.gpus + 1e-9))
    return min(rooms, default=demand.count)
