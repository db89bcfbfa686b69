"""Runs that something happens to, the same runs that nothing happens to, and further nodes."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from cluster import environment
from orchestrator.tuning.trainer import fit
from search_spaces.spec import SearchSpec
from tests.forked_workers import unforked
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run import heartbeat
from workers.run.events import RunEvent, read_events
from workers.run.record import Metrics, RunPlan, read_progress, read_rows
from workers.train.loop import TrainingRun

ROWS = 24
"""Training rows; with batches of 8 an epoch has three steps."""
PATIENCE = 400.0
"""Seconds that a test waits for anything: many times what it takes on two busy cores."""
Finished = Future[tuple[Path, Metrics]]
ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import sys
from pathlib import Path
from cluster.session import session
from search_spaces.spec import SearchSpec
from orchestrator.tuning.trainer import fit
from workers.config.train import TrainSpec
from workers.run.record import RunPlan
spec, search, folder, address = sys.argv[1:]
with session(address):
    plan = RunPlan(Path(folder), "study")
    fit(TrainSpec.model_validate_json(spec), plan, SearchSpec.model_validate_json(search))
"""
"""Runs `fit` in a process of its own."""


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
    told = ("failed", "attention", "data")
    return [event.kind for event in read_events(folder) if event.kind not in told]


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


class Raylets:
    """A cluster of several raylets: a head without CPUs, and nodes with one CPU and one GPU (that
    is a number only). Ray lets further nodes join by the machine's outer address alone, so a token
    guards it, and it is another one than `ray_cluster`: drivers are processes of their own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.env = environment.DRIVER | {
            name: value
            for name, value in unforked(os.environ).items()
            if not name.startswith("RAY_")
        }
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._nodes: list[Node] = []
        where, port = self.folder / "ray", _free_port()
        head = ("--head", "--no-monitor", "--port=0", f"--temp-dir={where}", "--num-cpus=0")
        dashboard = ("--include-dashboard=False", f"--ray-client-server-port={port}")
        self._start(*head, *dashboard)
        self.address = (where / "ray_current_cluster").read_text().strip()

    def add(self) -> "Node":
        """One node more."""
        return self._start(f"--address={self.address}", "--num-cpus=1", "--num-gpus=1")

    def driver(self, code: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A process that runs Python code, with the cluster's address as its last argument."""
        command = [sys.executable, "-c", code, *arguments, self.address]
        return subprocess.Popen(command, env=self.env, cwd=ROOT)

    def close(self) -> None:
        """End all of it."""
        for node in reversed(self._nodes):
            node.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *options: str) -> "Node":
        for _ in range(3):  # Ray gives up after half a minute, which a busy machine may need
            log = self.folder / f"node{len(self._nodes)}.log"
            self._nodes.append(Node(log, options, self.env))
            if self._nodes[-1].joins():
                return self._nodes[-1]
        raise AssertionError(f"a node did not start: {log.read_text()}")


class Node:
    """One raylet and what belongs to it."""

    def __init__(self, log: Path, options: Sequence[str], env: dict[str, str]) -> None:
        zero = ("node-manager-port", "object-manager-port", "dashboard-agent-listen-port")
        ports = [f"--{name}=0" for name in (*zero, "min-worker-port", "max-worker-port")]
        start = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block")
        memory = f"--object-store-memory={100 * 2**20}"
        self._log = log
        with log.open("wb") as file:
            self._starter = psutil.Popen(
                [*start, *options, *ports, memory],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def joins(self) -> bool:
        """Wait until it has joined, or could not."""
        started = b"Ray runtime started"
        wait_until(lambda: self._starter.poll() is not None or started in self._log.read_bytes())
        return self._starter.poll() is None

    def runs(self, pid: int) -> bool:
        """Whether a process is one of the node's."""
        return any(one.pid == pid for one in self._starter.children(recursive=True))

    def kill(self) -> None:
        """End the raylet at once; what it had started ends for want of it."""
        for one in self._starter.children(recursive=True):
            if one.name() == "raylet":
                one.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End all that is left."""
        left = self._starter.children(recursive=True) if self._starter.is_running() else []
        for one in (self._starter, *left):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self._starter.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
