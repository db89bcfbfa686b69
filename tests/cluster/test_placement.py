"""What has room where: on invented inventories, and on the real one, where others are too."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.errors import ClusterError
from cluster.inventory import Inventory, Node, inventory
from cluster.placement import Demand, fits, wait_for_room
from cluster.session import Session


def _nodes(*sizes: tuple[float, float]) -> Inventory:
    return Inventory(tuple(Node(str(i), "host", *size, 0) for i, size in enumerate(sizes)))


def _trial(workers: int, cpus: float, gpus: float = 0) -> Demand:
    return Demand("a trial", "worker", workers, cpus, gpus)


@pytest.mark.parametrize(
    ("sizes", "demand", "fit"),
    [
        ([(2, 0)], _trial(2, 1), True),
        ([(2, 0)], _trial(3, 1), False),
        ([(3, 0), (3, 0)], _trial(1, 4), False),  # no worker across nodes
        ([(3, 0), (3, 0)], _trial(2, 3), True),  # but a trial
        ([(64, 8)], _trial(8, 4, 1), True),
        ([(64, 0), (4, 4)], _trial(2, 4, 1), False),
        ([(0.3, 0)], _trial(3, 0.1), True),  # 0.3 / 0.1 is 2.999…
        ([], _trial(1, 1), False),
    ],
)
def test_tells_what_has_room(sizes: list[tuple[float, float]], demand: Demand, fit: bool) -> None:
    assert fits(demand, _nodes(*sizes)) is fit


def test_names_what_is_wanted() -> None:
    assert str(_trial(1, 1)) == "1 worker of 1 CPU"
    assert str(_trial(4, 2, 1)) == "4 workers of 2 CPUs and 1 GPU"
    assert _trial(2, 1, 0.5).bundles == [{"CPU": 1, "GPU": 0.5}] * 2
    assert Demand("the endpoint", "replica", 3, 0).bundles == []


@contextmanager
def _held(cpus: float) -> Iterator[None]:
    """So many of the cluster's CPUs are others'."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([{"CPU": cpus}])
    assert group.wait(30)
    try:
        yield
    finally:
        remove_placement_group(group)


@pytest.mark.usefixtures("ray_cluster")
def test_waits_for_what_others_hold_and_says_so() -> None:
    told: list[str] = []
    with _held(4):
        with pytest.raises(ClusterError, match=r"waited 0\.1 s for 1 worker .* others hold"):
            wait_for_room(_trial(1, 1), 0.1, told.append)
        wait_for_room(_trial(1, 0), 0.1)  # which wants nothing
        waiting = threading.Thread(target=wait_for_room, args=(_trial(2, 1), 60, told.append))
        waiting.start()
        while len(told) < 2:
            time.sleep(0.05)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()
    assert told[1].startswith("a trial waits for 2 workers of 1 CPU, at most 60 s: the cluster has")
    with _held(4):  # nothing of the waits is left behind
        pass


@pytest.mark.usefixtures("ray_cluster")
def test_refuses_at_once_what_a_cluster_of_ours_can_never_hold() -> None:
    with pytest.raises(ClusterError) as caught:
        wait_for_room(_trial(1, 5))
    assert str(caught.value) == (
        "a trial wants 1 worker of 5 CPUs, and has no room on the cluster: 1 node, 4 CPUs, 0 GPUs"
    )


def test_counts_the_real_cluster(ray_cluster: Session) -> None:
    there = inventory()
    assert [node.host for node in there.nodes] == ["127.0.0.1"]
    assert (there.cpus, len(there.nodes)) == (4, 1)
    assert there.nodes[0].memory_bytes > 2**30
    assert str(there).startswith("1 node, 4 CPUs, ")
