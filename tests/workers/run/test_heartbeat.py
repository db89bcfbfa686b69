"""Where workers are, as their files say it."""

import time
from collections.abc import Callable
from pathlib import Path

from workers.config.train import TrainSpec
from workers.run.heartbeat import ENDED, Heartbeat, HeartbeatWriter, read
from workers.run.record import Metrics, RunPlan
from workers.train.loop import TrainingRun

SpecMaker = Callable[..., TrainSpec]


def until(there: Callable[[], bool]) -> bool:
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not there() and time.monotonic() < end:
        time.sleep(0.02)
    return there()


def phases(folder: Path) -> list[str]:
    return [one.phase for one in read(folder)]


def test_a_worker_that_hangs_is_seen_in_its_last_phase(tmp_path: Path) -> None:
    heartbeats = [HeartbeatWriter(rank, 2).write(tmp_path) for rank in range(2)]
    for heartbeat in heartbeats:
        heartbeat.beat("forward", step=37)
    heartbeats[0].beat("reduce")  # and no further beat: the thread has to write it
    assert until(lambda: phases(tmp_path) == ["reduce", "forward"])
    first, second = read(tmp_path)
    assert (first.step, second.step) == (37, 37)
    assert first.beats == second.beats + 1, "the second worker is behind"
    assert until(lambda: read(tmp_path)[1].seconds > second.seconds)
    step, phase, seconds = heartbeats[1].standing()
    assert (step, phase) == (37, "forward")
    assert seconds >= read(tmp_path)[1].seconds
    for heartbeat in heartbeats:
        heartbeat.stop()
    assert until(lambda: phases(tmp_path) == [ENDED, ENDED])


def test_workers_of_a_larger_attempt_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    for rank, workers, at in ((0, 2, 20.0), (1, 2, 20.0), (2, 3, 10.0)):
        heartbeat = Heartbeat(
            rank=rank, workers=workers, step=1, phase="data", beats=1, seconds=0, at=at, every=1
        )
        (folder / f"{rank}.json").write_text(heartbeat.model_dump_json())
    (folder / "3.json").write_text('{"rank": 3, "wor')
    assert [one.rank for one in read(tmp_path)] == [0, 1]
    assert read(tmp_path / "nothing") == []


class Remembering(HeartbeatWriter):
    """Keeps every beat."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[str, int]] = []

    def beat(self, phase: str, step: int | None = None) -> None:
        super().beat(phase, step)
        self.places.append((phase, self.standing()[0]))


def test_a_run_says_where_it_is(make_spec: SpecMaker, tmp_path: Path) -> None:
    seen: list[Metrics] = []
    heartbeat = Remembering()
    heartbeat.write(tmp_path, seen.append)
    run = TrainingRun(make_spec(), RunPlan(tmp_path, "study"), heartbeat=heartbeat)
    run.advance()
    run.save_adapter(tmp_path / "adapter")
    run.close()
    a_step = ["forward", "forward", "backward", "reduce", "update"]
    assert [phase for phase, _ in heartbeat.places] == [
        *("encode", "loading"),
        *("data", *a_step),
        *("data", *a_step),
        *("evaluate", "save", ENDED),
    ]
    assert [step for phase, step in heartbeat.places if phase == "data"] == [0, 1]
    assert until(lambda: phases(tmp_path) == [ENDED])
    (last,) = read(tmp_path)
    assert last.progress is not None
    assert (last.progress.step, last.progress.steps) == (2, 4)
    assert last.progress == heartbeat.progress
    assert seen[-1] == heartbeat.progress.report()
    assert seen[-1]["train"]["loss"] == heartbeat.progress.loss


def test_a_full_disk_or_a_broken_observer_stops_nothing(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    def broken(report: Metrics) -> None:
        raise RuntimeError(report)

    full = Path("/dev/full")  # every write below it fails
    assert not full.is_dir()
    heartbeat = HeartbeatWriter().write(full, broken)
    run = TrainingRun(make_spec(), RunPlan(tmp_path, "study"), heartbeat=heartbeat)
    while not run.done:
        run.advance()
    run.close()
    assert heartbeat.progress is not None
    assert heartbeat.progress.step == 4


def test_files_do_not_grow(tmp_path: Path) -> None:
    heartbeat = HeartbeatWriter().write(tmp_path)
    for step in range(1000):
        heartbeat.beat("data", step)
    assert until(lambda: read(tmp_path) != [])
    heartbeat.stop()
    assert until(lambda: phases(tmp_path) == [ENDED])
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["0.json"]
