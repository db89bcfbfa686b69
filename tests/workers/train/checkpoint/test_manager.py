"""When checkpoints are made, and going on from them: exactly, and from whichever place has one."""

import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from workers.adapter.folder import WriteError
from workers.config.base import InputError, override
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.events import read_events
from workers.run.record import Metrics, RunPlan, read_rows
from workers.train.checkpoint.manager import CheckpointManager
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


class CutOffError(Exception):
    """Stands for a kill at a certain step: nothing after it is done."""


class Attempt:
    """One process's part of a run, as ray_worker does it; ends at step `cut_off`."""

    def __init__(self, spec: TrainSpec, folder: Path, cut_off: float = math.inf) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        plan = RunPlan(folder, "study")
        self.run = TrainingRun(spec, plan, world=World())
        self._checkpoints, self._cut_off = CheckpointManager(spec, plan, World()), cut_off
        self._checkpoints.resume(self.run)
        self.began, self.reports = self.run.step, list[Metrics]()

    def go(self) -> "Attempt":
        while not self.run.done:
            self.reports.append(figures(self.run.advance(self._after_step)))
            self._checkpoints.after_report(self.run)
        self._checkpoints.finish()
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        return self.run.adapter.state_dict()

    def _after_step(self, run: TrainingRun) -> None:
        self._checkpoints.after_step(run)
        if run.step >= self._cut_off:
            raise CutOffError


def figures(report: Metrics) -> Metrics:
    """A report without the clock."""
    train = {k: v for k, v in report["train"].items() if k != "tokens_per_second"}
    return {**report, "train": train}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("checkpoints/step-*"))


@pytest.fixture(scope="module")
def spec(make_spec: SpecMaker) -> TrainSpec:
    return make_spec(
        adapter__dropout=0.2,
        data__record_rows=True,
        optimizer__steps=10,
        optimizer__warmup_steps=1,
        evaluation__every=4,
        checkpoint__every=3,
    )


@pytest.fixture(scope="module")
def unbroken(spec: TrainSpec, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    return Attempt(spec, tmp_path_factory.mktemp("unbroken")).go()


def check_same(attempt: Attempt, unbroken: Attempt) -> None:
    """The same reports from where it began, and the same weights, to the last bit."""
    expected = [report for report in unbroken.reports if report["step"] > attempt.began]
    assert attempt.reports == expected
    for name, tensor in unbroken.weights().items():
        assert torch.equal(attempt.weights()[name], tensor), name


def test_a_run_goes_on_between_two_reports_to_the_last_bit(
    spec: TrainSpec, unbroken: Attempt, tmp_path: Path
) -> None:
    assert steps(unbroken.run.plan.folder) == [9, 10]
    folder = tmp_path / "run"
    with pytest.raises(CutOffError):
        Attempt(spec, folder, cut_off=7).go()
    assert steps(folder) == [3, 6]
    second = Attempt(spec, folder).go()
    assert second.began == 6
    assert [report["step"] for report in second.reports] == [8, 10]
    check_same(second, unbroken)
    assert Attempt(spec, folder).run.done


def test_no_row_is_skipped_or_seen_twice_in_an_epoch(spec: TrainSpec, tmp_path: Path) -> None:
    for cut_off in (2, 5, 7, math.inf):
        with pytest.raises(CutOffError) if cut_off < math.inf else nullcontext():
            Attempt(spec, tmp_path, cut_off=cut_off).go()
    taken = read_rows(tmp_path)
    assert sorted(taken) == list(range(10))
    for epoch in range(5):  # 16 rows, 8 in a step
        shares = [share for step in (0, 1) for share in taken[2 * epoch + step]]
        rows = Counter(row for share in shares for row in share)
        assert rows == Counter(range(16))


def test_a_checkpoint_is_made_at_every_report_where_no_step_is_given(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    spec = make_spec(optimizer__steps=5, evaluation__every=2, checkpoint__keep=9)
    Attempt(spec, tmp_path).go()
    assert steps(tmp_path) == [2, 4, 5]


def test_a_damaged_checkpoint_is_passed_over(
    spec: TrainSpec, unbroken: Attempt, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(CutOffError):
        Attempt(spec, folder, cut_off=7).go()
    state = folder / "checkpoints" / "step-00000006" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    second = Attempt(spec, folder).go()
    assert second.began == 3
    check_same(second, unbroken)
    (event,) = read_events(folder)
    assert event.kind == "checkpoint failed"
    assert "step-00000006: is no checkpoint that can be read" in event.message


def test_a_run_that_lost_its_folder_goes_on_from_the_upload(
    make_spec: SpecMaker, spec: TrainSpec, unbroken: Attempt, tmp_path: Path
) -> None:
    checkpoint = {"every": 3, "upload": f"file://{tmp_path}/bucket"}
    spec = TrainSpec.model_validate({**spec.model_dump(), "checkpoint": checkpoint})
    folder = tmp_path / "run"
    first = Attempt(spec, folder, cut_off=7)
    with pytest.raises(CutOffError):
        first.go()
    first._checkpoints.finish()
    shutil.rmtree(folder)
    second = Attempt(spec, folder).go()
    assert second.began == 6
    assert second.reports == unbroken.reports[1:]
    there = sorted(path.name for path in (tmp_path / "bucket/study/run").iterdir())
    assert there == ["step-00000009", "step-00000010"]


def test_checkpoints_of_another_run_are_neither_gone_on_with_nor_lost(
    make_spec: SpecMaker, spec: TrainSpec, tmp_path: Path
) -> None:
    with pytest.raises(CutOffError):
        Attempt(spec, tmp_path, cut_off=7).go()
    with pytest.raises(InputError, match=r"another specification; to begin anew, remove .*points"):
        Attempt(make_spec(optimizer__steps=3), tmp_path)
    assert steps(tmp_path) == [3, 6]
    more = override(spec, {"checkpoint.keep": 5, "parallel.hang_timeout_s": 60}, "test")
    assert Attempt(more, tmp_path).began == 6


@pytest.fixture
def small_disk(tmp_path: Path, processes: None) -> Iterator[Callable[[int], Path]]:
    """small_disk(bytes): a filesystem of that size; again: make it larger."""
    if os.geteuid() != 0:
        pytest.skip("a filesystem can be mounted by root only")
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: int) -> Path:
        again = ["remount,"] if folder.is_mount() else [""]
        options = f"{again[0]}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, check=False).returncode:
            pytest.skip("a filesystem cannot be mounted here")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("processes")
def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(
    spec: TrainSpec, unbroken: Attempt, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    saved = list((unbroken.run.plan.folder / "checkpoints" / "step-00000010").rglob("*"))
    one = sum(4096 + path.stat().st_size for path in saved)
    folder = small_disk(one * 3 // 2) / "run"
    with pytest.raises((OSError, WriteError), match=r"No space left|cannot be written"):
        Attempt(spec, folder).go()
    assert steps(folder) == [3]  # there was room for one
    failed = [event for event in read_events(folder) if event.kind == "checkpoint failed"]
    assert [event.step for event in failed] == [6, 9, 10]
    assert all("No space left on device" in event.message for event in failed)
    small_disk(one * 10)
    second = Attempt(spec, folder).go()
    assert second.began == 3
    check_same(second, unbroken)
