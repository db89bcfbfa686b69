"""What a job wants, against invented nodes and this machine."""

from pathlib import Path
from typing import Any

import pytest

from cluster.inventory import Inventory, Node
from orchestrator.config.job import JobSpec, override_job
from orchestrator.doctor.demand import room_for, too_small_here
from workers.config.base import InputError


def _nodes(*sizes: tuple[float, float]) -> Inventory:
    return Inventory(tuple(Node(str(i), "host", *size, 0) for i, size in enumerate(sizes)))


GPUS = {"search.cpus_per_worker": 8, "search.gpus_per_worker": 1, "optimizer.batch_size": 16}
CASES: list[tuple[dict[str, Any], Inventory, list[str]]] = [
    (
        {**GPUS, "parallel.workers": 2, "search.max_concurrent": 4},
        _nodes((64, 8)),
        ["2 workers of 8 CPUs and 1 GPU; the cluster has 1 node, 64 CPUs, 8 GPUs: room for 4 at"],
    ),
    (
        {**GPUS, "parallel.workers": 2, "search.max_concurrent": 4},
        _nodes((16, 2), (16, 2)),
        ["room for 2 at a time, 4 are wanted (search.max_concurrent)"],
    ),
    ({**GPUS}, _nodes((4, 0)), ["4 CPUs, 0 GPUs: it waits 600 s for an autoscaler"]),
    ({}, _nodes((0, 0)), ["the endpoint wants 1 replica of 1 CPU; the cluster has 1 node, 0 CPUs"]),
    (
        {**GPUS, "parallel.workers": 8, "parallel.ep_size": 4},
        _nodes(*[(16, 2)] * 4),
        ["ep_size: 4 workers share the experts, and a node holds 2 of them at most: the exchange"],
    ),
    (
        {"parallel.workers": {"min": 1, "max": 4}, "optimizer.batch_size": 12},
        _nodes((2, 0)),
        ["a trial wants 4 workers of 1 CPU; the cluster has 1 node, 2 CPUs, 0 GPUs: it takes as"],
    ),
    (
        {"serve.replicas": 3, "serve.gpus_per_replica": 1},
        _nodes((8, 2)),
        ["the endpoint wants 3 replicas of 1 CPU and 1 GPU; the cluster has 1 node, 8 CPUs, 2 GP"],
    ),
]


@pytest.mark.parametrize(("changes", "there", "said"), CASES, ids=map(str, range(len(CASES))))
def test_says_how_a_job_goes_with_a_cluster(
    changes: dict[str, Any], there: Inventory, said: list[str], job: JobSpec
) -> None:
    lines = list(room_for(override_job(job, changes, "test"), there))
    assert all("\n" not in line for line in lines)
    for part in said:
        assert part in " ".join(lines)


def test_says_nothing_of_the_network_where_a_node_holds_a_copy(job: JobSpec) -> None:
    changes = {**GPUS, "parallel.workers": 8, "parallel.ep_size": 4}
    (line,) = room_for(override_job(job, changes, "test"), _nodes((64, 4), (64, 4)))
    assert line.endswith("room for 1 at a time")


def test_refuses_what_a_cluster_that_does_not_grow_cannot_hold(job: JobSpec) -> None:
    with pytest.raises(InputError, match=r"wants 1 worker of 1 CPU; .* 0 GPUs, and does not grow"):
        list(room_for(job, _nodes((0.5, 0)), grows=False))


def test_this_machine_is_measured_only_where_it_is_the_cluster(
    job: JobSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert too_small_here(job) is None
    large = override_job(job, {"search.cpus_per_worker": 4096}, "test")
    assert "a trial wants 1 worker of 4096 CPUs; this machine has" in str(too_small_here(large))
    elsewhere = override_job(large, {"cluster.address": "head:6379"}, "test")
    assert too_small_here(elsewhere) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert too_small_here(large) is None, "as in a job of a cluster"
