"""The files of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.run.record import RunRecord, read_progress, reason
from workers.train.step import DivergedError

SpecMaker = Callable[..., TrainSpec]


def test_progress_goes_on_after_the_checkpoint(make_spec: SpecMaker, tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "T000")
    record.begin(make_spec())
    for step in (2, 4, 6):
        record.add({"step": step})
    with (record.folder / "progress.jsonl").open("a") as file:
        file.write('{"step": 8, "trai')  # killed while it wrote
    assert [report["step"] for report in read_progress(record.folder)] == [2, 4, 6]
    record.go_on(4)
    record.add({"step": 6, "again": True})
    assert read_progress(record.folder) == [{"step": 2}, {"step": 4}, {"step": 6, "again": True}]
    assert read_progress(tmp_path / "nothing") == []


def test_the_first_failure_is_kept_until_a_new_attempt(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    record = RunRecord(tmp_path / "T000")
    record.begin(make_spec())
    with pytest.raises(DivergedError), record.failure_kept():
        raise DivergedError("loss is nan")
    with pytest.raises(RuntimeError), record.failure_kept():
        raise RuntimeError("Connection closed by peer")
    assert (record.folder / "error.txt").read_text() == "loss is nan\n"
    record.begin(make_spec())
    assert not (record.folder / "error.txt").exists()


def test_the_observer_sees_every_report(tmp_path: Path) -> None:
    seen: list[object] = []
    RunRecord(tmp_path, seen.append).add({"step": 1})
    assert seen == [{"step": 1}]


def test_a_reason_is_one_line() -> None:
    assert reason(InputError("a file\nis gone")) == "a file is gone"
    assert reason(KeyError("x")) == "KeyError: 'x'"
