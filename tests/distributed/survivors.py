"""Runs that something happens to, the same runs that nothing happens to, and further nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from cluster.session import Session
from orchestrator.spec import SearchSpec
from orchestrator.trainer import fit
from workers.parallel.world import World
from workers.spec import TrainSpec
from workers.train import heartbeat
from workers.train.events import RunEvent, read_events
from workers.train.loop import TrainingRun
from workers.train.record import Metrics, RunPlan, read_progress
from workers.train.rows_taken import read_rows

ROWS = 24
"""Training rows; with batches of 8 an epoch has three steps."""
PATIENCE = 400.0
"""Seconds that a test waits for anything: many times what it takes on two busy cores."""
Finished = Future[tuple[Path, Metrics]]


def rows_file(folder: Path) -> Path:
    """So many rows of about the same length."""
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"row {n:02d}", "target": f"{n * 7 % ROWS:02d}"} for n in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(rank: int, workers: int, spec: TrainSpec, folder: Path) -> None:
    """One worker of an unbroken run without Ray; for torch.multiprocessing."""
    store = dist.FileStore(str(folder / "store"), workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    run = TrainingRun(spec, RunPlan(folder, "study"), world=World.current())
    reports = []
    while not run.done:
        reports.append(run.advance())
    if rank == 0:
        (folder / "progress.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reports))
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def running(spec: TrainSpec, folder: Path, search: SearchSpec) -> Iterator[Finished]:
    """The run on the connected cluster, in another thread."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool.submit(fit, spec, RunPlan(folder, "study"), search)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def wait_until(condition: Callable[[], object], run: Finished | None = None) -> None:
    """Return when something holds; fail after PATIENCE, or if the run ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if run and run.done():
            run.result()
            pytest.fail("the run ended too soon")
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def steps_taken(folder: Path) -> int:
    """Steps with a line in rows.jsonl, those that were taken twice counted once."""
    return len(read_rows(folder)) if (folder / "rows.jsonl").exists() else 0


def process(folder: Path, rank: int) -> int:
    """Process id of a worker."""
    return next(one.pid for one in heartbeat.read(folder) if one.rank == rank)


def kinds(folder: Path) -> list[str]:
    """What happened to a run, without what the other workers make of a failure."""
    return [event.kind for event in read_events(folder) if event.kind != "failed"]


def event(folder: Path, kind: str) -> RunEvent:
    """The last event of a kind."""
    return [one for one in read_events(folder) if one.kind == kind][-1]


def check_rows(spec: TrainSpec, folder: Path) -> None:
    """In what went into the parameters no row is missing and none is there twice, in any epoch; of
    the steps that were taken twice there are not more than between two checkpoints."""
    taken = read_rows(folder)
    assert sorted(taken) == list(range(spec.optimizer.steps))
    per_epoch = ROWS // spec.optimizer.batch_size
    for first in range(0, spec.optimizer.steps, per_epoch):
        epoch = [taken[step] for step in range(first, min(first + per_epoch, len(taken)))]
        rows = Counter(row for workers in epoch for share in workers for row in share)
        assert max(rows.values()) == 1
        assert len(rows) == len(epoch) * spec.optimizer.batch_size
    lines = len((folder / "rows.jsonl").read_text().splitlines())
    attempts = kinds(folder).count("resumed")
    assert spec.checkpoint.every
    assert lines - len(taken) <= attempts * spec.checkpoint.every


def check_losses(folder: Path, unbroken: Path, rel: float) -> None:
    """Every report is that of the unbroken run."""
    ours, theirs = read_progress(folder), read_progress(unbroken)
    assert [report["step"] for report in ours] == [report["step"] for report in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=rel)
        assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=rel)


class Node:
    """A raylet more in the cluster that this process is connected to: one CPU and one GPU, which is
    a number only."""

    def __init__(self, session: Session) -> None:
        self._known = {node["NodeID"] for node in _alive()}
        options = {
            "address": session.address,
            "node-ip-address": "127.0.0.1",
            "node-manager-port": 0,
            "object-manager-port": 0,
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": 100 * 2**20,
            "num-cpus": 1,
            "num-gpus": 1,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        self._starter = psutil.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *given],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> "Node":
        """Until it has joined; returns itself."""
        wait_until(lambda: any(node["NodeID"] not in self._known for node in _alive()))
        self._processes = self._starter.children(recursive=True)
        return self

    def runs(self, pid: int) -> bool:
        """Whether a process is one of the node's."""
        return any(one.pid == pid for one in self._starter.children(recursive=True))

    def kill(self) -> None:
        """End the raylet at once; what it had started ends for want of it."""
        for one in self._starter.children(recursive=True):
            if "raylet" in Path(one.exe()).name:
                one.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End all that is left."""
        left = self._starter.children(recursive=True) if self._starter.is_running() else []
        for one in (self._starter, *left):
            one.kill()
        self._starter.wait()


def _alive() -> list[dict[str, object]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
