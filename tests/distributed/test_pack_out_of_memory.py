"""A worker of a pack that lacks memory: all try again with less in a pass, and no run is lost."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.test_out_of_memory import SpecMaker, joined
from tests.processes import run_together
from tests.workers.train.greedy import greedy, rows
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.events import read_events
from workers.run.record import RunPlan
from workers.train.packed.pack import Pack
from workers.train.task import RunTask

Weights = dict[str, torch.Tensor]
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "a": {"adapter.num_experts": 4, "adapter.dropout": 0.1},
    "b": {"adapter.experts": "linear", "adapter.num_experts": 2, "loss.z_loss_weight": 1e-3},
    "c": {"adapter.num_experts": 1, "adapter.top_k": 1},
    "d": {"adapter.num_experts": 3, "adapter.top_k": 1},
}
"""Each owes the others another number of messages in a pass, or none."""
SHARED = "out of memory: {} of the pack's runs at most in a pass from here on (before: {})"


@pytest.mark.usefixtures("processes")
def test_all_workers_of_a_pack_take_less_together(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec = make_spec(
        parallel__workers=2,
        optimizer__steps=2,
        optimizer__micro_batch_size=2,
        loss__load_balance_weight=0.1,
        evaluation__rows_per_task=3,
    )
    run_together(two_workers, spec, tmp_path, processes=2)


def two_workers(rank: int, spec: TrainSpec, folder: Path) -> None:
    with joined(rank, folder):
        check_fewer_runs_in_a_pass(rank, spec, folder)
        check_fewer_rows_of_one(rank, spec, folder)
        check_one_that_has_none_at_all(rank, spec, folder)


def check_fewer_runs_in_a_pass(rank: int, spec: TrainSpec, folder: Path) -> None:
    """In the second of two passes with all runs it owes part of the messages of each; then in the
    one of the two last runs, before those of the second micro-batch."""
    wanted = trained(spec, SHAPES, folder / "wanted")
    for who in ({0}, {1}, {0, 1}):
        for backward in (False, True):
            path = folder / f"{who} {backward}"
            fits = all_but({2, 4}) if rank in who else rows(99)
            got = trained(spec, SHAPES, path, fits, backward=backward)
            assert_alike(got, wanted)
            dist.barrier()
            for name in SHAPES:
                assert memory_of(path / name) == [SHARED.format(2, 4), SHARED.format(1, 2)]


def check_fewer_rows_of_one(rank: int, spec: TrainSpec, folder: Path) -> None:
    """Two runs in a pass, then one, and then one row of the first run."""
    two = {name: SHAPES[name] for name in "ab"}
    smaller = {**two, "a": {**two["a"], "optimizer.micro_batch_size": 1}}
    wanted = trained(spec, smaller, folder / "one row")
    path = folder / "fewer rows"
    got = trained(spec, two, path, all_but({1, 2}) if rank else rows(99))
    assert_alike(got, wanted)
    dist.barrier()
    assert memory_of(path / "b") == [SHARED.format(1, 2)]
    first, then = memory_of(path / "a")
    assert first == SHARED.format(1, 2)
    assert then.startswith("out of memory: 1 row at most in a forward pass from here on")


def check_one_that_has_none_at_all(rank: int, spec: TrainSpec, folder: Path) -> None:
    """Every run ends with the same line, on all workers."""
    pack, told = begun(spec, {name: SHAPES[name] for name in "ab"}, folder / "none"), {}
    hook = greedy(model(pack), rows(0 if rank else 99), mode="training")
    while pack.names:
        told |= pack.round(pack.names)
    hook.remove()
    for name in "ab":
        assert "out of memory with one row in a forward pass" in str(told[name])


def all_but(numbers: Collection[int]) -> Callable[[torch.Tensor], bool]:
    """Every pass fits but these, counted from 1."""
    seen: list[int] = []

    def fits(hidden_BSD: torch.Tensor) -> bool:
        seen.append(len(hidden_BSD))
        return len(seen) not in numbers

    return fits


def trained(
    spec: TrainSpec,
    shapes: Mapping[str, Mapping[str, Any]],
    folder: Path,
    fits: Callable[[torch.Tensor], bool] | None = None,
    *,
    backward: bool = False,
) -> dict[str, Weights]:
    """Each run's weights at its end."""
    pack = begun(spec, shapes, folder)
    weights = {
        name: dict(slot.run.adapter.named_parameters()) for name, slot in pack._slots.items()
    }
    hook = greedy(model(pack), fits or rows(99), mode="training", backward=backward)
    while pack.names:
        for name, outcome in pack.round(pack.names).items():
            assert not isinstance(outcome, Exception), (name, outcome)
    hook.remove()
    return weights


def begun(spec: TrainSpec, shapes: Mapping[str, Mapping[str, Any]], folder: Path) -> Pack:
    """A pack with these runs, in float64."""
    pack = Pack(len(shapes), World.current())
    for seed, (name, shape) in enumerate(shapes.items()):
        one = override(spec, {**shape, "seed": seed}, "test")
        pack.join(RunTask(one, RunPlan(folder / name, "study", shared=folder)))
    model(pack).double()
    return pack


def model(pack: Pack) -> torch.nn.Module:
    assert pack._inputs is not None
    return pack._inputs.base.model


def assert_alike(got: dict[str, Weights], wanted: dict[str, Weights]) -> None:
    for run, weights in wanted.items():
        for name, tensor in weights.items():
            far = float((got[run][name] - tensor).detach().abs().max())
            assert far < 1e-10, (run, name, far)


def memory_of(folder: Path) -> list[str]:
    return [one.message for one in read_events(folder) if one.kind == "memory"]
