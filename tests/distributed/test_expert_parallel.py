"""Expert parallelism is exact: two and four processes over gloo against one's plain sums."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.expert_parallel_cases import (
    CASES,
    RECOMPUTED,
    STEPS,
    Case,
    Trace,
    batches,
    build,
    reference,
)
from tests.processes import by_first, run_together
from workers.config.parallel import ParallelSpec
from workers.parallel.cost import ExchangeChoice, Passes
from workers.parallel.expert_shards import ExpertShards
from workers.parallel.mesh import Mesh
from workers.parallel.update import Replicated
from workers.parallel.world import World
from workers.train.step import TrainStep


class Watched(Replicated):
    """Keeps the gradients of the first step, and may divide those of the experts wrongly."""

    gradients: dict[str, torch.Tensor] | None = None
    divisor = 1

    def clip(self, max_norm: float) -> torch.Tensor:
        for name, parameter in self._named.items():
            if name in self._shards.parameters and parameter.grad is not None:
                parameter.grad /= self.divisor
        if self.gradients is None:
            self.gradients = {
                name: self._whole(name, parameter.grad)
                for name, parameter in self._named.items()
                if parameter.grad is not None
            }
        return super().clip(max_norm)


def train(case: Case, exchange: str, ep_size: int, dtype: torch.dtype, divisor: int = 1) -> Trace:
    """Some steps on this worker's rows; the figures of all workers."""
    base, adapter = build(case, dtype, checkpointing=case.recomputed)
    world = dist.get_world_size()
    mesh = Mesh.of(ParallelSpec(workers=world, ep_size=ep_size))
    shards = ExpertShards(adapter, mesh, ExchangeChoice(exchange), Passes.of(case.spec))
    update = Watched(adapter, case.spec.optimizer, shards)
    update.divisor = divisor
    step = TrainStep(case.spec, base, adapter, update)
    trace = Trace()
    for number in range(STEPS):
        result = step([batches(case, world, number)[dist.get_rank()]])
        trace.losses.append(result.losses["loss"])
        trace.norms.append(result.grad_norm)
    trace.gradients = update.gradients or {}
    trace.parameters = update.whole_adapter()
    for name, parameter in shards.parameters.items():
        assert len(parameter) * ep_size == len(trace.parameters[name])
    return trace


def work(rank: int, world: int, folder: Path) -> None:
    """One worker through all cases."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    few = CASES[:4]  # Both kinds of experts, even and skewed.
    for case in CASES + RECOMPUTED if world == 2 else few + RECOMPUTED[:1]:
        check(case, world, torch.float64, 1e-12)
    for case in few[:2]:
        check(case, world, torch.float32, 1e-5)
    expected = plain(CASES[0], world, torch.float64)
    with pytest.raises(AssertionError, match=r"losses|norms|gradients"):
        train(CASES[0], "tokens", 2, torch.float64, divisor=2).compare(expected, 1e-5)
    dist.barrier()
    dist.destroy_process_group()


def check(case: Case, world: int, dtype: torch.dtype, tolerance: float) -> None:
    """All ways to share out the experts."""
    expected = plain(case, world, dtype)
    ways = [(1, "weights"), *((size, way) for size in (2, 4) for way in case.only.split())]
    for ep_size, exchange in ways:
        if ep_size <= world:
            trace = train(case, exchange, ep_size, dtype)
            try:
                trace.compare(expected, tolerance)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, {ep_size} {exchange}: {error}") from None


def plain(case: Case, world: int, dtype: torch.dtype) -> Trace:
    """One process's, computed once."""
    return by_first(World.current(), partial(reference, case, world, dtype))


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("world", [2, 4])
def test_it_equals_one_process(world: int, tmp_path: Path) -> None:
    run_together(work, world, tmp_path, processes=world)
