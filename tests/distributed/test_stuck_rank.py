"""A rank that stops in the midst of a step, while the others wait for it in a collective."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from orchestrator.monitoring.stalls import Stall, stalls
from orchestrator.monitoring.status import run_status
from tests.processes import start_together
from workers.config.train import TrainSpec
from workers.run.heartbeat import HeartbeatWriter, read
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun

STUCK_AFTER = 8


class StopsForEver(HeartbeatWriter):
    """The second worker's ninth step begins, and comes no further."""

    def beat(self, phase: str, step: int | None = None) -> None:
        super().beat(phase, step)
        if self.rank == 1 and phase == "data" and step == STUCK_AFTER:
            threading.Event().wait()


def work(rank: int, folder: Path, spec: TrainSpec) -> None:
    """One of two workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    heartbeat = StopsForEver(rank, 2).write(folder)
    TrainingRun(spec, RunPlan(folder, "study"), heartbeat=heartbeat).advance()


@pytest.mark.usefixtures("processes")
def test_it_is_named_and_the_waiting_one_is_not(
    make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    spec = make_spec(parallel__workers=2, optimizer__steps=12, evaluation__every=12)
    workers = start_together(work, tmp_path, spec, processes=2)
    try:
        (stall,) = first_stalls(tmp_path)
        assert (stall.ranks, stall.workers, stall.step) == ((1,), 2, STUCK_AFTER)
        assert str(stall).startswith("rank 1 of 2 has stood in step 9 (data) for ")
        status = run_status(tmp_path)
        assert status.phase == "data"
        assert status.progress is not None
        assert (status.progress.step, status.progress.workers) == (STUCK_AFTER, 2)
        waiting = read(tmp_path)[0]
        assert (waiting.step, waiting.phase) == (STUCK_AFTER, "forward")
    finally:
        for process in workers.processes:
            process.kill()
            process.join()


def first_stalls(folder: Path) -> tuple[Stall, ...]:
    """What is seen first of processes that live, within minutes: ten times a usual step is long on
    a busy machine, and a process may go for seconds without being run at all."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        found = stalls(read(folder), at_least=2.0)
        if found and not found[0].silent:
            return found
        time.sleep(0.2)
    pytest.fail(f"nothing stands still: {read(folder)}")
