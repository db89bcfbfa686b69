"""Studies whose rows are broken, repaired or changed on the way, in each way to run a trial."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.session import Session
from orchestrator.config.job import JobSpec
from orchestrator.tuning.events import TrialEvent
from orchestrator.tuning.preflight import preflight
from orchestrator.tuning.study import Study
from orchestrator.tuning.tuner import run
from workers.adapter.manifest import read_manifest
from workers.config.base import InputError
from workers.config.train import TrainSpec

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def make_job(make_spec: Callable[..., TrainSpec], rows_file: Path, tmp_path: Path) -> MakeJob:
    """`make_job(workers, trials=2)`: a study of seconds whose rows are its own."""
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(rows_file.read_bytes())

    def make(workers: int, trials: int = 2, **search: Any) -> JobSpec:
        train = make_spec(
            data__train=str(rows),
            data__validation=str(rows),
            parallel__workers=workers,
            optimizer__steps=6,
        )
        search = {"space": "smoke", "trials": trials, "grace_evaluations": 3, **search}
        return JobSpec.model_validate(
            {
                "name": "tiny",
                "train": train.model_dump(),
                "search": search,
                "cluster": {"storage": str(tmp_path / "runs")},
            }
        )

    return make


def add(job: JobSpec, row: dict[str, object]) -> None:
    with Path(job.train.data.train).open("a") as file:
        file.write(json.dumps(row) + "\n")


def actors_of_trials(cluster: Session) -> int:
    from ray.util.state import list_actors

    alive = list_actors(address=cluster.address, filters=[("state", "=", "ALIVE")])
    return sum("Train" in actor.class_name for actor in alive)


@pytest.mark.parametrize(("workers", "pack"), [(1, 1), (2, 1), (1, 2)])
def test_bad_input_ends_the_study_at_once_and_after_the_repair_it_goes_on(
    make_job: MakeJob, ray_cluster: Session, workers: int, pack: int
) -> None:
    """The driver's own look is left out: a worker may be the first to see what is wrong."""
    job = make_job(workers, retries=2, pack=pack, max_concurrent=pack)
    whole = Path(job.train.data.train).read_text()
    add(job, {"prompt": "stop all", "target": True, "task": "call"})
    events: list[TrialEvent] = []
    with pytest.raises(InputError, match=r"study tiny: trial T00\d: .*rows.jsonl: line 17"):
        run(job, on_progress=events.append)
    assert {event.kind for event in events} <= {"started"}, "neither retried nor failed"
    assert not any(t.state.is_finished() for t in Study.open(job.cluster, "tiny").optuna.trials)
    assert actors_of_trials(ray_cluster) == 0

    Path(job.train.data.train).write_text(whole)
    preflight(job, resume=True)
    rows = run(job, resume=True).leaderboard()
    assert [row.state for row in rows] == ["finished"] * 2
    assert sorted(row.number for row in rows) == [0, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_whose_rows_changed_goes_on_as_a_new_one(
    make_job: MakeJob, ray_cluster: Session, workers: int
) -> None:
    job = make_job(workers, trials=3 if workers == 1 else 2, max_concurrent=1)

    def interrupt(event: TrialEvent) -> None:
        if (event.number, event.kind) == (1, "reported") and event.step > 2:
            raise KeyboardInterrupt  # its checkpoint of step 2 is there

    with pytest.raises(KeyboardInterrupt):
        run(job, on_progress=interrupt)
    first = Study.open(job.cluster, "tiny").row(0)
    assert first.state == "finished"
    add(job, {"prompt": "stop all", "target": "set(room=all, to=off)", "task": "call"})
    with pytest.raises(InputError, match=r"study tiny: its rows .* --accept-new-data"):
        preflight(job, resume=True)
    with pytest.raises(InputError, match="its rows"):
        run(job, resume=True)

    preflight(job, resume=True, accept_new_data=True)
    study = run(job, resume=True, accept_new_data=True)
    assert study.name == "tiny-2"
    assert [row.state for row in study.leaderboard()] == ["finished"] * (job.search.trials - 1)
    before = read_manifest(job.study_folder() / "trials/T000/adapter")
    moved = read_manifest(study.folder / "trials/T000/adapter")
    assert before is not None
    assert moved is not None
    assert moved.data_digest != before.data_digest
    assert moved.earlier_data == (before.data_digest,)
    if workers == 1:
        fresh = read_manifest(study.folder / "trials/T001/adapter")
        assert fresh is not None
        assert (fresh.data_digest, fresh.earlier_data) == (moved.data_digest, ())
    former = Study.open(job.cluster, "tiny")
    assert former.row(0) == first
    assert (former.row(1).state, former.row(1).reason) == (
        "failed",
        "its rows have changed: it goes on in study tiny-2",
    )
    again = run(job, resume=True, accept_new_data=True)
    assert (again.name, again.leaderboard()) == ("tiny-2", study.leaderboard())
