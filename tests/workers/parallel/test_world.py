"""Two processes over gloo equal one: training, evaluation and the resumed run, without Ray."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.processes import run_together
from workers.adapter import files
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.record import Metrics, RunPlan, RunRecord, read_progress
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


def figures(report: Metrics) -> Metrics:
    """A report without the clock and the wires."""
    of_workers = ("tokens_per_second", "exchanged_bytes_per_step")
    train = {k: v for k, v in report["train"].items() if k not in of_workers}
    return {**report, "train": train}


def work(rank: int, folder: Path, specs: Sequence[TrainSpec]) -> None:
    """One of two workers, for one run after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    assert World.current() == World(rank, 2)
    for spec in specs:
        train_and_resume(spec, folder / name_of(spec))
    dist.destroy_process_group()


def name_of(spec: TrainSpec) -> str:
    """A folder's name for each of the runs."""
    return f"{spec.adapter.experts}-{spec.parallel.ep_size}-{spec.parallel.exchange}"


def train_and_resume(spec: TrainSpec, folder: Path) -> None:
    """Train with a checkpoint in the middle; the rest again in a new run, to the last bit."""
    world = World.current()
    plan = RunPlan(folder, "study")
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    unbroken = TrainingRun(spec, plan)
    reports = [unbroken.advance()]
    unbroken.save(folder / "checkpoint")
    reports.append(unbroken.advance())
    world.barrier()
    resumed = TrainingRun(spec, plan)
    resumed.load(folder / "checkpoint")
    assert figures(resumed.advance()) == figures(reports[-1])
    resumed.save_adapter(folder / "adapter")
    for report in reports if world.is_first else ():
        RunRecord(folder).add(figures(report))
    world.barrier()


@pytest.mark.usefixtures("processes")
def test_two_workers_equal_one(make_spec: SpecMaker, tmp_path: Path) -> None:
    specs = [
        make_spec(
            adapter__experts=experts,
            adapter__routing=routing,
            loss__load_balance_weight=0.1,
            loss__z_loss_weight=0.01,
            # Adam makes a whole step of the rounding of a gradient near zero.
            optimizer__lr=5e-4,
            parallel__workers=2,
            evaluation__generate=True,
            evaluation__rows_per_task=7,  # shares of unequal size
        )
        for experts, routing in (("block", "top_k"), ("linear", "top_p"))
    ]
    specs += [
        override(specs[0], {"parallel.ep_size": 2, "parallel.exchange": way}, "test")
        for way in ("tokens", "weights")
    ]
    run_together(work, tmp_path, specs, processes=2)
    for spec in specs:
        alone = TrainingRun(spec, RunPlan(tmp_path / "alone", "study"), world=World())
        expected = [figures(alone.advance()), figures(alone.advance())]
        folder = tmp_path / name_of(spec)
        for ours, theirs in zip(read_progress(folder), expected, strict=True):
            assert_close(ours, theirs)
        tensors = files.read(folder / "adapter").tensors
        for name, tensor in alone.adapter.state_dict().items():
            torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=0)
        # What two workers kept, one alone goes on with, its experts in one piece.
        resumed = TrainingRun(spec, RunPlan(tmp_path / "resumed", "study"), world=World())
        resumed.load(folder / "checkpoint")
        assert_close(figures(resumed.advance()), expected[1])


def assert_close(ours: Metrics, theirs: Metrics) -> None:
    assert ours["train"] == pytest.approx(theirs["train"], rel=1e-5, abs=1e-6)
    validation, expected = ours["validation"], theirs["validation"]
    assert validation["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert validation["score"] == expected["score"]
    for layer, entry in expected["routing"].items():
        # A token on the border between two experts may fall to either.
        assert validation["routing"][layer]["load"] == pytest.approx(entry["load"], abs=2e-3)


def test_a_world_of_one_needs_no_process_group() -> None:
    world = World.current()
    assert world == World(0, 1)
    assert world.share(range(3)) == range(3)
    assert world.totals([1, 2.5], torch.device("cpu")).tolist() == [1.0, 2.5]
    assert world.gather("x") == ["x"]
