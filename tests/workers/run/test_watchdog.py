"""The watchdog, in processes of its own: it ends them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.run.heartbeat import Heartbeat
from workers.run.watchdog import EXIT_CODE, behind, idle, verdict

HANGS = """
import sys, threading, time
from pathlib import Path
from workers.run.heartbeat import HeartbeatWriter
from workers.run.watchdog import Watchdog

folder = Path(sys.argv[1])
heartbeat, other = HeartbeatWriter(0, 2).write(folder), HeartbeatWriter(1, 2).write(folder)
Watchdog(heartbeat, folder, 1.5, lambda why: print(why, flush=True)).start()
heartbeat.beat("data", 6)
heartbeat.beat("forward")
heartbeat.beat("reduce")
other.beat("data", 6)
for _ in range(20):  # worker 0 waits, but for one that moves
    time.sleep(0.25)
    other.moving()
print("waited", flush=True)
lock = threading.Lock()
lock.acquire()
lock.acquire()
"""


@pytest.mark.usefixtures("processes")
def test_a_worker_that_hangs_ends_and_names_who_is_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_CODE, done.stderr
    waited, said = done.stdout.splitlines()
    assert waited == "waited"
    assert said.startswith("worker 0: nothing moved for ")
    assert "behind is worker 1 (step 7, data, " in said
    assert "waiting for it: worker 0 (step 7, reduce, " in said


FAR = """
import sys, threading, time
from pathlib import Path
from workers.run.heartbeat import HeartbeatWriter, Heartbeat
from workers.run.watchdog import Watchdog
from workers.run.files import write_text

folder, wrong = Path(sys.argv[1]), float(sys.argv[2])
heartbeat = HeartbeatWriter(0, 2).write(folder)
Watchdog(heartbeat, folder, 3.0, lambda why: print(why, flush=True)).start()
heartbeat.beat("reduce", 6)
(folder / "ranks").mkdir(exist_ok=True)
for beats in range(28):
    other = Heartbeat(rank=1, workers=2, step=6, phase="forward", beats=beats, seconds=0.0,
                      at=time.time() + wrong, every=1.0)
    write_text(folder / "ranks" / "1.json", other.model_dump_json())
    time.sleep(0.25)
print("waited", flush=True)
threading.Event().wait()
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("wrong", [-3600, 3600])
def test_another_hosts_clock_ends_no_worker_and_keeps_none(wrong: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAR, str(tmp_path), str(wrong)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_CODE, done.stderr
    assert done.stdout.splitlines()[0] == "waited"


def beat(rank: int, beats: int, phase: str, seconds: float, age: float = 0.0) -> Heartbeat:
    return Heartbeat(
        rank=rank,
        workers=3,
        step=6,
        phase=phase,
        beats=beats,
        seconds=seconds,
        at=time.time() - age,
        every=1.0,
    )


def test_who_is_behind_went_through_the_fewest_phases() -> None:
    everyone = [beat(0, 40, "reduce", 90), beat(1, 38, "forward", 95), beat(2, 40, "reduce", 91)]
    assert [one.rank for one in behind(everyone)] == [1]
    together = [beat(rank, 40, "reduce", 90) for rank in range(3)]
    assert "all workers are in the same place" in verdict(0, 90, together)
    assert behind([]) == []


def test_a_process_that_no_longer_writes_does_not_move() -> None:
    stopped = beat(1, 38, "forward", 2, age=100)  # SIGSTOP, or its node is gone
    assert 101 < idle(stopped) < 110
