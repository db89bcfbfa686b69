"""Who is named, of workers that stand still."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitoring.stalls import stalls
from orchestrator.monitoring.status import run_status
from workers.run.heartbeat import ENDED, Heartbeat, read
from workers.run.progress import Progress

USUAL = Progress(
    step=36,
    steps=400,
    epoch=0.5,
    workers=4,
    loss=1.5,
    auxiliary={"load_balance": 1.1},
    lr=1e-3,
    tokens_per_second=1000.0,
    step_seconds=2.0,
    pause_seconds=8.0,
    eta_seconds=728.0,
)


def worker(rank: int, **changes: Any) -> Heartbeat:
    """One of four that moves on; the first one knows the figures."""
    facts: dict[str, Any] = {
        "rank": rank,
        "workers": 4,
        "step": 36,
        "phase": "reduce",
        "beats": 500,
        "seconds": 0.5,
        "at": time.time(),
        "every": 1.0,
        "progress": USUAL if rank == 0 else None,
    }
    return Heartbeat(**{**facts, **changes})


def said(*workers: Heartbeat) -> list[str]:
    return [str(stall) for stall in stalls(workers)]


def test_workers_that_move_are_not_named() -> None:
    assert said(*(worker(rank) for rank in range(4))) == []
    slow = [worker(rank, seconds=19.0) for rank in range(4)]
    assert said(*slow) == [], "nothing that takes less than ten times the usual"
    assert said() == []


def test_the_one_that_the_others_wait_for_is_named() -> None:
    waiting = [worker(rank, seconds=95.0) for rank in (0, 2, 3)]
    stuck = worker(1, phase="backward", beats=499, seconds=95.0)
    assert said(*waiting, stuck) == ["rank 1 of 4 has stood in step 37 (backward) for 1 min 35 s"]
    (stall,) = stalls([*waiting, stuck])
    assert (stall.ranks, stall.silent) == ((1,), False)
    late = worker(1, phase="backward", beats=499, seconds=2.0)
    assert said(*waiting, late) == [], "it has begun to move"


def test_several_places_are_several_lines() -> None:
    two = [worker(rank, phase="data", beats=497, seconds=40.0) for rank in (1, 2)]
    waiting = [worker(rank, seconds=40.0) for rank in (0, 3)]
    assert said(*waiting, *two) == ["ranks 1, 2 of 4 have stood in step 37 (data) for 40 s"]


def test_all_in_one_place_are_all_named() -> None:
    everyone = [worker(rank, seconds=95.0) for rank in range(4)]
    assert said(*everyone) == ["all 4 ranks have stood in step 37 (reduce) for 1 min 35 s"]


def test_a_process_without_a_sign_of_life_is_named_alone() -> None:
    waiting = [worker(rank, seconds=95.0) for rank in (0, 1, 3)]
    dead = worker(2, phase="forward", beats=498, seconds=0.2, at=time.time() - 95)
    assert said(*waiting, dead) == [
        "rank 2 of 4 has given no sign of life for 1 min 35 s; last: step 37, forward"
    ]
    rare = worker(2, beats=499, at=time.time() - 95, every=8.0)
    assert said(worker(0), rare) == [], "hundreds of workers write less often"


def test_what_is_long_depends_on_the_phase() -> None:
    alone = {"workers": 1, "phase": "evaluate", "rank": 0}
    assert said(worker(**alone, seconds=79.0)) == []
    assert said(worker(**alone, seconds=81.0)) == [
        "the worker has stood after step 36 (evaluate) for 1 min 21 s"
    ]
    unknown = USUAL.model_copy(update={"pause_seconds": None})
    assert said(worker(**alone, seconds=81.0, progress=unknown)) == []
    first = worker(0, workers=1, phase="forward", step=0, seconds=500.0, progress=None)
    assert said(first) == [], "the first step may compile"
    assert said(worker(0, workers=1, phase=ENDED, seconds=9e9, at=0.0)) == []


WORKER = """
import sys, time
from pathlib import Path
from workers.run.heartbeat import HeartbeatWriter
heartbeat = HeartbeatWriter(int(sys.argv[2]), 2).write(Path(sys.argv[1]))
for step in range(10_000):
    for phase in ("forward", "backward", "reduce"):
        heartbeat.beat(phase, step)
        time.sleep(0.01)
"""


@pytest.mark.usefixtures("processes")
def test_a_frozen_process_is_named(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(rank)])
        for rank in range(2)
    ]
    try:
        end = time.monotonic() + 60
        while len(read(tmp_path)) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        assert run_status(tmp_path).stalls == ()
        os.kill(workers[1].pid, signal.SIGSTOP)
        while not run_status(tmp_path).stalls and time.monotonic() < end:
            time.sleep(0.2)
        (stall,) = run_status(tmp_path).stalls
        assert (stall.ranks, stall.workers, stall.silent) == ((1,), 2, True)
        os.kill(workers[1].pid, signal.SIGCONT)
        while run_status(tmp_path).stalls and time.monotonic() < end:
            time.sleep(0.2)
        assert run_status(tmp_path).stalls == ()
    finally:
        for process in workers:
            process.kill()
            process.wait()
