"""A worker of several that lacks memory: all halve their passes, and none waits for ever."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.session import Session
from orchestrator.tuning.trainer import _trainer, _Training
from search_spaces.spec import SearchSpec
from tests.processes import run_together
from tests.workers.train.greedy import FAR_TOO_MUCH, greedy, rows
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.record import Observer, RunPlan, read_progress
from workers.train.inputs import Inputs
from workers.train.loop import TrainingRun
from workers.train.out_of_memory import DoesNotFitError
from workers.train.task import RunTask

SpecMaker = Callable[..., TrainSpec]
SHARE = 4
"""Rows that each of two workers has of a step."""


@contextmanager
def joined(rank: int, folder: Path) -> Iterator[None]:
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("processes")
def test_all_workers_halve_together(make_spec: SpecMaker, tmp_path: Path) -> None:
    spec = make_spec(
        parallel__workers=2,
        adapter__dropout=0.1,
        loss__z_loss_weight=1e-3,
        optimizer__steps=2,
        evaluation__rows_per_task=3,
    )
    sharded = override(spec, {"parallel.strategy": "fsdp2"}, "test")
    run_together(two_workers, spec, sharded, tmp_path, processes=2)


def two_workers(rank: int, spec: TrainSpec, sharded: TrainSpec, folder: Path) -> None:
    with joined(rank, folder):
        check_one_that_lacks_memory(rank, spec, folder)
        check_one_that_has_none_at_all(rank, spec, folder)
        check_a_base_in_shards(sharded, folder)


def check_one_that_lacks_memory(rank: int, spec: TrainSpec, folder: Path) -> None:
    """In the forward pass it owes the others its part of the balance loss; in the backward pass it
    has given that, and owes gradients; in the second of two passes it owes fewer of each."""
    inputs = Inputs.load(spec)
    for micro in (None, 2):
        before = override(spec, {"optimizer.micro_batch_size": micro}, "test")
        after = override(spec, {"optimizer.micro_batch_size": (micro or SHARE) // 2}, "test")
        wanted = trained(after, inputs, folder / f"wanted {micro}")
        for who in ({0}, {1}, {0, 1}):
            for backward in (False, True):
                path = folder / f"{micro} {who} {backward}"
                hook = greedy(
                    inputs.base.model,
                    all_but(SHARE // micro if micro else 1) if rank in who else rows(99),
                    mode="training",
                    backward=backward,
                )
                got = trained(before, inputs, path)
                hook.remove()
                for name, tensor in wanted.items():
                    assert torch.equal(got[name], tensor), (path, name)
                dist.barrier()
                events = [one for one in read_events(path) if one.kind == "memory"]
                assert [one.step for one in events] == [0], path
                assert f"{(micro or SHARE) // 2} row" in events[0].message


def all_but(number: int) -> Callable[[torch.Tensor], bool]:
    """Every pass fits but one, counted from 1."""
    seen: list[int] = []

    def fits(hidden_BSD: torch.Tensor) -> bool:
        seen.append(len(hidden_BSD))
        return len(seen) != number

    return fits


def check_one_that_has_none_at_all(rank: int, spec: TrainSpec, folder: Path) -> None:
    """All end, with the same line."""
    inputs = Inputs.load(spec)
    hook = greedy(inputs.base.model, rows(0 if rank else 99), mode="training")
    with pytest.raises(DoesNotFitError, match="out of memory with one row in a forward pass"):
        trained(spec, inputs, folder / "none")
    hook.remove()


def check_a_base_in_shards(spec: TrainSpec, folder: Path) -> None:
    """Others are in the midst of the pass, which cannot be left alone: it ends with a line."""
    inputs = Inputs.load(spec)
    hook = greedy(inputs.base.model, rows(SHARE - 1), mode="training")
    said = (
        "out of memory in a forward pass of 4 rows, [0-9]+ tokens; with parallel.strategy fsdp2 "
        "the workers wait for each other in the midst of it, and it cannot be tried again: lower "
        "optimizer.micro_batch_size"
    )
    with pytest.raises(DoesNotFitError, match=said):
        trained(spec, inputs, folder / "shards")
    hook.remove()


def trained(spec: TrainSpec, inputs: Inputs, folder: Path) -> dict[str, torch.Tensor]:
    """To the end; the adapter is taken off then."""
    folder.mkdir(exist_ok=True)
    run = TrainingRun(spec, RunPlan(folder, "study"), inputs=inputs)
    try:
        while not run.done:
            run.advance()
        return {name: one.clone() for name, one in run.adapter.state_dict().items()}
    finally:
        run.close()


def lacking(plan: RunPlan) -> Observer:
    """Called in the first worker's process alone, before its model is loaded: what it trains with
    more than two rows does not fit there."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    def run(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        large = isinstance(module, LlamaDecoderLayer) and len(inputs[0]) > SHARE // 2
        if large and module.training:
            torch.empty(FAR_TOO_MUCH, dtype=torch.uint8)

    torch.nn.modules.module.register_module_forward_pre_hook(run)
    return lambda _: None


def test_a_ray_train_group_goes_on(
    ray_cluster: Session, make_spec: SpecMaker, tmp_path: Path
) -> None:
    spec = make_spec(parallel__workers=2, evaluation__rows_per_task=3)
    wanted = override(spec, {"optimizer.micro_batch_size": SHARE // 2}, "test")
    found = []
    for name, one, observe in (("run", spec, lacking), ("wanted", wanted, None)):
        plan = RunPlan(tmp_path / name, "study")
        task = RunTask(one, plan, observe)
        # In a thread: Ray Train takes over Ctrl-C of the main one, and its controller stays.
        training = _Training(_trainer(task, SearchSpec(cpus_per_worker=1), retries=0))
        training.start()
        training.join()
        assert training.error is None
        found.append(read_progress(plan.folder)[-1])
    assert found[0]["train"]["loss"] == found[1]["train"]["loss"]
    assert found[0]["validation"] == found[1]["validation"]
    (event,) = [one for one in read_events(tmp_path / "run") if one.kind == "memory"]
    assert event.message.startswith("out of memory: 2 rows at most in a forward pass")
