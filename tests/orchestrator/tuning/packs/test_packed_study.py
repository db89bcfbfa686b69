"""Studies whose trials share a base, on a real cluster: through ASHA, failures and kills."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.session import Session
from orchestrator.config.job import JobSpec, override_job
from orchestrator.monitoring.status import study_status
from orchestrator.registry.registry import Registry
from orchestrator.tuning.events import TrialEvent
from orchestrator.tuning.study import Study
from orchestrator.tuning.tuner import run
from tests.orchestrator.tuning.test_tuner import Ran, kill_driver, run_through
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.events import read_events
from workers.run.record import RunPlan, read_progress
from workers.train.loop import TrainingRun

WHERE = re.compile(r"slot (\d) of 3 in pack (\d), process (\d+) on \S+")
GOOD, IDLE, BROKEN = 1e-2, 1e-9, 1e30


@pytest.fixture(scope="module")
def make_job(make_spec: Callable[..., TrainSpec]) -> Callable[..., JobSpec]:
    """`make_job(storage, search__trials=3, …)`: a study of seconds in packs of three, which ASHA
    leaves alone; keywords are fields of JobSpec."""

    def make(storage: Path, **changes: Any) -> JobSpec:
        job = JobSpec.model_validate(
            {
                "name": "tiny",
                "train": make_spec(optimizer__steps=6).model_dump(),
                "search": {
                    "space": "smoke",
                    "trials": 3,
                    "max_concurrent": 3,
                    "pack": 3,
                    "grace_evaluations": 3,
                },
                "cluster": {"storage": str(storage)},
            }
        )
        return override_job(job, {k.replace("__", "."): v for k, v in changes.items()}, "test")

    return make


def places(ran: Ran, number: int) -> list[tuple[int, int, int]]:
    """Slot, pack and process of each time that a trial joined a pack."""
    told = [event.message for event in read_events(ran.folder(number)) if event.kind == "pack"]
    found = [WHERE.fullmatch(message) for message in told]
    return [(int(one[1]), int(one[2]), int(one[3])) for one in found if one]


def assert_ends_as_alone(ran: Ran, number: int, folder: Path, **changes: Any) -> None:
    """A finished trial reported what it reports alone (in one process, by these changes), and its
    version is of that."""
    spec = TrainSpec.model_validate_json((ran.folder(number) / "train.json").read_text())
    spec = override(spec, {k.replace("__", "."): v for k, v in changes.items()}, "test")
    alone = TrainingRun(spec, RunPlan(folder / f"alone{number}", "study"), world=World())
    expected = []
    while not alone.done:
        expected.append(alone.advance()["validation"]["loss"])
    alone.close()
    told = [report["validation"]["loss"] for report in read_progress(ran.folder(number))]
    assert told == pytest.approx(expected, rel=1e-5)
    row = ran.rows[number]
    registry = Registry(ran.job.store_url(), ran.job.cluster.storage)
    assert row.value == told[-1]
    assert registry.version(row.version or "").metrics["validation"]["loss"] == told[-1]


def left_in(cluster: Session) -> set[str]:
    """Actors of packs that are still there; they may take a moment to go."""
    from ray.util.state import list_actors

    end = time.monotonic() + 60
    while True:
        alive = list_actors(address=cluster.address, filters=[("state", "=", "ALIVE")])
        names = {actor.class_name.rpartition(".")[2] for actor in alive}
        left = names & {"StudyBroker", "PackActor", "PackGroup"}
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)


def test_trials_take_each_others_slots_and_end_as_alone(
    make_job: Callable[..., JobSpec], ray_cluster: Session, tmp_path: Path
) -> None:
    """Rates that learn, that do not, and that end in infinity; of one seed each is asked for."""
    job = make_job(
        tmp_path / "runs",
        search__trials=6,
        search__startup_trials=6,
        search__grace_evaluations=1,
        search__reduction_factor=2,
        search__space={
            "optimizer.lr": {"choice": [GOOD, IDLE, BROKEN]},
            "adapter.rank": {"int": [2, 4]},
        },
        search__seed=69,
        search__repeat=True,
    )
    ran = run_through(job)
    rates = [row.params["optimizer.lr"] for row in ran.rows]
    assert set(rates) == {GOOD, IDLE, BROKEN}
    for row in ran.rows:
        number, rate = row.number, row.params["optimizer.lr"]
        joined = places(ran, number)
        assert {(pack, process) for _, pack, process in joined} == {places(ran, 0)[0][1:]}
        assert all(1 <= slot <= 3 for slot, _, _ in joined)
        if rate == BROKEN:
            assert (row.state, len(joined)) == ("failed", 2)
            assert "diverged" in str(row.reason)
            assert ran.study.optuna.trials[number].user_attrs["failures"] == [row.reason] * 2
            assert ran.kinds(number) == ["started", "retried", "started", "failed"]
        elif row.state == "finished":
            assert_ends_as_alone(ran, number, tmp_path)
        else:
            assert (row.state, row.version) == ("stopped", None)
    assert any(row.state == "finished" for row in ran.rows)


def test_a_lost_pack_costs_its_trials_one_retry(
    make_job: Callable[..., JobSpec], ray_cluster: Session, tmp_path: Path
) -> None:
    """Two packs, so that one is lost and the other is not."""

    def kill_once(event: TrialEvent) -> None:
        events.append(event)
        if (event.kind, event.step) == ("reported", 2) and not killed:
            ran = Ran(job, Study.open(job.cluster, "tiny"), events)
            killed.append(places(ran, event.number)[0])
            os.kill(killed[0][2], signal.SIGKILL)

    killed: list[tuple[int, int, int]] = []
    events: list[TrialEvent] = []
    job = make_job(tmp_path / "runs", search__trials=4, search__max_concurrent=4)
    ran = Ran(job, run(job, on_progress=kill_once), events)
    assert [row.state for row in ran.rows] == ["finished"] * 4
    assert not left_in(ray_cluster)
    ((_, lost, _),) = killed
    for row in ran.rows:
        first, *later = places(ran, row.number)
        retried = ran.kinds(row.number).count("retried")
        kinds = [event.kind for event in read_events(ran.folder(row.number))]
        assert [kind for kind in kinds if kind in ("lost", "pack")] == (
            ["pack", "lost", "pack"] if first[1] == lost else ["pack"]
        )
        assert len(later) == (first[1] == lost)
        assert retried <= len(later), "a trial whose report was on its way joins again unharmed"
        assert lost not in [pack for _, pack, _ in later]
        failures = ran.study.optuna.trials[row.number].user_attrs.get("failures", [])
        assert [why.partition(":")[0] for why in failures] == [f"pack {lost} is gone"] * retried
        assert_ends_as_alone(ran, row.number, tmp_path)


def test_packs_of_two_workers(
    make_job: Callable[..., JobSpec], ray_cluster: Session, tmp_path: Path
) -> None:
    job = make_job(
        tmp_path / "runs",
        optimizer__lr=5e-4,  # Adam makes a whole step of the rounding of a gradient near zero
        optimizer__micro_batch_size=2,
        parallel__workers=2,
        search__trials=4,
        search__space={"adapter.rank": {"int": [2, 8]}, "adapter.top_k": {"choice": [1, 2]}},
        search__repeat=True,
    )
    ran = run_through(job)
    assert [row.state for row in ran.rows] == ["finished"] * 4
    assert {places(ran, row.number)[0][1] for row in ran.rows} == {1}
    assert not left_in(ray_cluster)
    for row in ran.rows:
        one = {"parallel__workers": 1, "optimizer__micro_batch_size": 4}
        assert_ends_as_alone(ran, row.number, tmp_path, **one)


def test_a_packed_study_goes_on_after_its_driver_was_killed(
    make_job: Callable[..., JobSpec], ray_cluster: Session, tmp_path: Path
) -> None:
    """Of a size that each driver finds: two packs have room at a time, for three trials."""
    found = {"search__pack": "auto", "search__cpus_per_worker": 2}
    job = make_job(tmp_path / "runs", search__trials=4, **found)
    kill_driver(job, "1 reported 4", ray_cluster)
    status = study_status(Study.open(job.cluster, "tiny"))
    assert not any(run.event for run in status.running), "a pack is nothing that went wrong"
    ran = run_through(job, resume=True)
    assert [row.state for row in ran.rows] == ["finished"] * 4
    first = next(e for e in ran.events if (e.number, e.kind) == (1, "reported"))
    assert first.step > 2, "it goes on from its checkpoint"
    for row in ran.rows:
        told = [one.message for one in read_events(ran.folder(row.number)) if one.kind == "pack"]
        assert told
        assert all(" of 2 in pack " in message for message in told), told
        assert_ends_as_alone(ran, row.number, tmp_path)


def test_ctrl_c_ends_the_packs_and_the_study_goes_on_later(
    make_job: Callable[..., JobSpec], ray_cluster: Session, tmp_path: Path
) -> None:
    def interrupt(event: TrialEvent) -> None:
        if (event.kind, event.step) == ("reported", 2):
            raise KeyboardInterrupt

    job = make_job(tmp_path / "runs", search__trials=4)
    with pytest.raises(KeyboardInterrupt):
        run(job, on_progress=interrupt)
    assert not left_in(ray_cluster)
    left = Study.open(job.cluster, "tiny").leaderboard()
    assert "finished" not in {row.state for row in left}
    ran = run_through(job, resume=True)
    assert [row.state for row in ran.rows] == ["finished"] * 4
    resumed = [
        row.number
        for row in ran.rows
        if "resumed" in {event.kind for event in read_events(ran.folder(row.number))}
    ]
    assert resumed, "they go on from their checkpoints"
    for row in ran.rows:
        assert_ends_as_alone(ran, row.number, tmp_path)


def test_a_lost_ticket_costs_its_trial_one_retry(
    make_job: Callable[..., JobSpec], ray_cluster: Session, tmp_path: Path
) -> None:
    """Its slot is given back, and the others in the pack go on."""

    def kill_once(event: TrialEvent) -> None:
        events.append(event)
        if (event.kind, event.step) == ("reported", 2) and not killed:
            tickets = tickets_in(ray_cluster)
            killed.append(tickets[0])
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    events: list[TrialEvent] = []
    job = make_job(tmp_path / "runs")
    ran = Ran(job, run(job, on_progress=kill_once), events)
    assert [row.state for row in ran.rows] == ["finished"] * 3
    assert not left_in(ray_cluster)
    assert sum(ran.kinds(row.number).count("retried") for row in ran.rows) == 1
    for row in ran.rows:
        joined = places(ran, row.number)
        assert len(joined) == 1 + ran.kinds(row.number).count("retried")
        assert len({process for _, _, process in joined}) == 1, "the pack is the same one"
        assert_ends_as_alone(ran, row.number, tmp_path)


def tickets_in(cluster: Session) -> list[int]:
    """Processes of tickets, by the name that `tune.with_resources` gives their class."""
    from ray.util.state import list_actors

    alive = list_actors(
        address=cluster.address, filters=[("state", "=", "ALIVE")], detail=True, limit=1000
    )
    return [one.pid for one in alive if one.class_name.rpartition(".")[2] == "ResourceTrainable"]
