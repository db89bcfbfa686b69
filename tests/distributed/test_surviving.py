"""Runs of two Ray Train workers go on after whatever happens to them, and end as if nothing had."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.session import Session
from search_spaces.spec import SearchSpec
from tests.distributed.survivors import (
    DRIVER,
    PATIENCE,
    ROOT,
    check_losses,
    check_rows,
    event,
    kinds,
    process,
    rows_file,
    running,
    steps_taken,
    trained,
    wait_until,
)
from tests.processes import run_together
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.run.events import read_events

SpecMaker = Callable[..., TrainSpec]
AT = 14
"""Something happens after so many steps: between two checkpoints, and between two reports."""


@pytest.fixture(scope="module")
def spec(make_spec: SpecMaker, tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    rows = rows_file(tmp_path_factory.mktemp("rows"))
    return make_spec(
        data__train=str(rows),
        data__validation=str(rows),
        data__record_rows=True,
        optimizer__steps=45,
        optimizer__lr=5e-4,
        optimizer__micro_batch_size=1,
        evaluation__every=15,
        checkpoint__every=4,
        parallel__workers=2,
    )


@pytest.fixture(scope="module")
def unbroken(spec: TrainSpec, tmp_path_factory: pytest.TempPathFactory, processes: None) -> Path:
    """Folder with the reports of the same run, by two processes that nothing happens to."""
    folder = tmp_path_factory.mktemp("unbroken")
    run_together(trained, 2, spec, folder, processes=2)
    return folder


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(
    ray_cluster: Session, spec: TrainSpec, unbroken: Path, tmp_path: Path
) -> None:
    with running(spec, tmp_path / "run", SearchSpec(retries=1)) as run:
        wait_until(lambda: steps_taken(tmp_path / "run") >= AT, run)
        os.kill(process(tmp_path / "run", 1), signal.SIGKILL)
        run.result(PATIENCE)
    check_losses(tmp_path / "run", unbroken, rel=1e-6)
    check_rows(spec, tmp_path / "run")
    assert kinds(tmp_path / "run") == ["started", "lost", "resumed", "finished"]
    assert event(tmp_path / "run", "lost").worker == 1
    assert event(tmp_path / "run", "resumed").step >= AT // 4 * 4
    assert not (tmp_path / "run" / "error.txt").exists()


@pytest.mark.endurance
def test_a_worker_that_hangs_is_named_and_the_run_goes_on(
    ray_cluster: Session, spec: TrainSpec, unbroken: Path, tmp_path: Path
) -> None:
    spec = override(spec, {"parallel.hang_timeout_s": 6}, "test")
    with running(spec, tmp_path / "run", SearchSpec(retries=1)) as run:
        wait_until(lambda: steps_taken(tmp_path / "run") >= AT, run)
        stopped = process(tmp_path / "run", 1)
        os.kill(stopped, signal.SIGSTOP)  # the other one now waits in a collective, for ever
        run.result(PATIENCE)
    check_losses(tmp_path / "run", unbroken, rel=1e-6)
    check_rows(spec, tmp_path / "run")
    told = [kind for kind in kinds(tmp_path / "run") if kind != "lost"]
    assert told == ["started", "hung", "resumed", "finished"]
    hung = event(tmp_path / "run", "hung")
    assert hung.worker == 0
    assert "behind is worker 1 (" in hung.message
    assert f"process {stopped} on " in hung.message.split("waiting")[0]


@pytest.fixture
def driver(ray_cluster: Session) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Run `fit` in another process."""
    started: list[subprocess.Popen[bytes]] = []

    def start(spec: TrainSpec, folder: Path) -> subprocess.Popen[bytes]:
        run = [spec.model_dump_json(), SearchSpec().model_dump_json(), str(folder)]
        command = [sys.executable, "-c", DRIVER, *run, ray_cluster.address]
        started.append(subprocess.Popen(command, cwd=ROOT))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


@pytest.mark.endurance
def test_a_run_is_gone_on_with_after_its_driver_was_killed(
    ray_cluster: Session,
    spec: TrainSpec,
    unbroken: Path,
    tmp_path: Path,
    driver: Callable[..., subprocess.Popen[bytes]],
) -> None:
    first = driver(spec, tmp_path / "run")
    wait_until(lambda: first.poll() is not None or steps_taken(tmp_path / "run") >= AT)
    assert first.poll() is None
    first.kill()
    first.wait()
    workers = [process(tmp_path / "run", rank) for rank in range(2)]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    with running(spec, tmp_path / "run", SearchSpec()) as run:
        run.result(PATIENCE)
    check_losses(tmp_path / "run", unbroken, rel=1e-6)
    check_rows(spec, tmp_path / "run")
    assert kinds(tmp_path / "run") == ["started", "resumed", "finished"]


@pytest.mark.endurance
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    ray_cluster: Session, spec: TrainSpec, unbroken: Path, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a filesystem can be mounted by root only")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(disk), "-o"]
    if subprocess.run([*mount, "size=700k"], check=False).returncode:
        pytest.skip("a filesystem cannot be mounted here")
    try:
        full = pytest.raises(InputError, match="No space left on device")
        with running(spec, disk / "run", SearchSpec(retries=0)) as run, full:
            run.result(PATIENCE)
        before = read_events(disk / "run")
        assert "checkpoint failed" in [one.kind for one in before]
        subprocess.run([*mount, "remount,size=64m"], check=True)
        with running(spec, disk / "run", SearchSpec(retries=0)) as run:
            run.result(PATIENCE)
        check_losses(disk / "run", unbroken, rel=1e-6)
        assert event(disk / "run", "resumed").step > 0
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
