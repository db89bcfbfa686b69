"""How many trials share a base: on invented nodes, by the estimate of a tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.inventory import Inventory, Node
from orchestrator.config.job import JobSpec, override_job
from orchestrator.doctor.pack_room import ASIDE, FILLED, PackPlan, planned, settled_pack
from orchestrator.doctor.trial_memory import TrialMemory
from workers.config.base import InputError
from workers.config.train import TrainSpec

TEN_GB = 10**10


@pytest.fixture
def job(make_spec: Callable[..., TrainSpec], tmp_path: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "train": make_spec().model_dump(),
            "search": {
                "space": {"adapter.rank": {"int": [2, 8]}},
                "trials": 8,
                "max_concurrent": 6,
                "pack": "auto",
            },
            "cluster": {"storage": str(tmp_path / "runs")},
        }
    )


def nodes(*cpus: float, memory: int = TEN_GB) -> Inventory:
    return Inventory(tuple(Node(str(at), "host", some, 0, memory) for at, some in enumerate(cpus)))


def changed(job: JobSpec, **search: Any) -> JobSpec:
    return override_job(job, {f"search.{name}": value for name, value in search.items()}, "test")


def test_a_pack_is_as_large_as_memory_allows(job: JobSpec) -> None:
    held = TrialMemory(job)
    of_four = held.of(held.largest[0], 4).total
    enough = ASIDE + round(of_four / FILLED) + 1
    assert settled_pack(job, nodes(1, memory=enough)).search.pack == 4
    assert settled_pack(job, nodes(1, memory=enough - 2)).search.pack == 3
    assert settled_pack(job, nodes(1, memory=ASIDE)).search.pack == 1
    assert settled_pack(job, nodes(1)).search.pack == 6, "no more run at a time"
    assert settled_pack(changed(job, trials=5), nodes(1)).search.pack == 5, "there are no more"
    assert settled_pack(changed(job, pack=2), nodes(1)).search.pack == 2


@pytest.mark.parametrize(
    ("cpus", "size"), [((2,), 3), ((1, 1), 3), ((4,), 2), ((16,), 1), ((0, 1), 6), ((), 6)]
)
def test_no_worker_is_left_without_a_pack(job: JobSpec, cpus: tuple[float, ...], size: int) -> None:
    assert PackPlan(job, TrialMemory(job), nodes(*cpus)).wanted == size


def test_a_nodes_workers_share_its_memory(job: JobSpec) -> None:
    plan = PackPlan(job, TrialMemory(job), nodes(2, 4))
    assert [plan.room(size) for size in (1, 2, 3, 6)] == [
        TEN_GB // 4,
        TEN_GB // 3,
        TEN_GB // 2,
        TEN_GB,
    ]


def test_what_nobody_knows_is_asked_for(job: JobSpec) -> None:
    for there in (nodes(), nodes(1, memory=0)):
        with pytest.raises(InputError, match=r"search\.pack: auto wants to know how much memory"):
            settled_pack(job, there)
        unknown = planned(job, TrialMemory(job), there)
        assert unknown
        assert (unknown.trials, unknown.room) == (6, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_elsewhere_is_not_known(job: JobSpec) -> None:
    on_gpus = changed(override_job(job, {"train.model.device": "auto"}, "test"), gpus_per_worker=1)
    there = Inventory((Node("0", "host", 8, 1, TEN_GB),))
    assert PackPlan(on_gpus, TrialMemory(on_gpus), there).room(1) is None


@pytest.mark.gpu
def test_a_gpu_that_is_here_is_known(job: JobSpec) -> None:
    on_gpus = changed(override_job(job, {"train.model.device": "auto"}, "test"), gpus_per_worker=1)
    there, most = Inventory((Node("0", "host", 8, 1, 1),)), torch.cuda.mem_get_info()[1]
    held = TrialMemory(on_gpus)
    assert PackPlan(on_gpus, held, there).room(1) == pytest.approx(most, rel=0.01)
    half = PackPlan(changed(on_gpus, gpus_per_worker=0.5), held, there)
    assert half.room(1) == pytest.approx(most / 2, rel=0.01)


def test_plans_are_for_who_packs_or_would_gain(job: JobSpec) -> None:
    def plan(**search: Any) -> Any:
        mine = changed(job, **search)
        return planned(mine, TrialMemory(mine), nodes(1))

    asked = plan(pack=4)
    assert (asked.trials, asked.most) == (4, 4)
    assert plan(pack=1).trials == 6, "it would gain"
    assert plan(pack=1, max_concurrent=1) is None
    whole = override_job(changed(job, pack=1), {"train.model.compile": True}, "test")
    assert planned(whole, TrialMemory(whole), nodes(1)) is None, "cannot be packed"
    held = TrialMemory(job)
    little = ASIDE + round(held.of(held.largest[0], 2).total / FILLED) + 1
    tight = planned(changed(job, pack=4), held, nodes(1, memory=little))
    assert tight
    assert (tight.trials, tight.most) == (4, 2)
