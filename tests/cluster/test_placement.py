"""What has room where: on invented inventories, and on the real one."""

import pytest

from cluster.errors import ClusterError
from cluster.inventory import Inventory, Node, inventory
from cluster.placement import Demand, check_fit, trials_that_fit
from cluster.session import Session


def _nodes(*sizes: tuple[float, float]) -> Inventory:
    return Inventory(tuple(Node(str(i), "host", *size, 0) for i, size in enumerate(sizes)))


@pytest.mark.parametrize(
    ("sizes", "demand", "fit"),
    [
        ([(2, 0)], Demand(trials=4, workers=1, cpus=1), 2),
        ([(2, 0)], Demand(trials=1, workers=1, cpus=1), 1),
        ([(8, 0)], Demand(trials=4, workers=2, cpus=1.5), 2),
        ([(3, 0), (3, 0)], Demand(trials=4, workers=1, cpus=4), 0),  # no worker across nodes
        ([(3, 0), (3, 0)], Demand(trials=4, workers=2, cpus=3), 1),  # but a trial
        ([(64, 8)], Demand(trials=9, workers=2, cpus=4, gpus=1), 4),
        ([(64, 0), (4, 4)], Demand(trials=9, workers=1, cpus=4, gpus=1), 1),
        ([(0.3, 0)], Demand(trials=9, workers=1, cpus=0.1), 3),  # 0.3 / 0.1 is 2.999…
        ([], Demand(trials=1, workers=1, cpus=1), 0),
    ],
)
def test_counts_trials_with_room(
    sizes: list[tuple[float, float]], demand: Demand, fit: int
) -> None:
    assert trials_that_fit(demand, _nodes(*sizes)) == fit


def test_says_what_is_there_and_what_is_wanted() -> None:
    demand = Demand(trials=1, workers=4, cpus=2, gpus=1)
    with pytest.raises(ClusterError) as caught:
        check_fit(demand, _nodes((8, 1), (8, 1)))
    assert str(caught.value) == (
        "placement: a trial wants 4 workers of 2 CPUs and 1 GPUs, which has no room on the "
        "cluster: 2 nodes, 16 CPUs, 2 GPUs"
    )
    check_fit(demand, _nodes((8, 4)))


def test_counts_the_real_cluster(ray_cluster: Session) -> None:
    there = inventory()
    assert [node.host for node in there.nodes] == ["127.0.0.1"]
    assert (there.cpus, len(there.nodes)) == (4, 1)
    assert there.nodes[0].memory_bytes > 2**30
    assert str(there).startswith("1 node, 4 CPUs, ")
