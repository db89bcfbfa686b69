"""From drift to a canary: what a watch does, when, and what it remembers."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
import yaml
from typer.testing import CliRunner

from cluster.errors import ClusterError
from cluster.jobs import JobClient
from cluster.session import Session
from orchestrator.cli import app
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.health import HealthSpec
from orchestrator.config.job import JobSpec, dump_job
from orchestrator.gateway.app import create_app
from orchestrator.gateway.management_routes import health_routes
from orchestrator.gateway.services import GatewayServices
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.retraining.backends import End, HereRuns
from orchestrator.retraining.conclusion import ChampionChallenge
from orchestrator.retraining.data import with_fresh
from orchestrator.retraining.journal import Journal
from orchestrator.retraining.policy import Policy, load_policy
from orchestrator.retraining.signals import Signals, measured_quality
from orchestrator.retraining.watch import Watch
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.router_health.monitor import RouterHealth
from orchestrator.serve.proxy import free_port
from tests.orchestrator.traffic import (
    Trained,
    answered,
    clinic,
    home,
    rows_of,
    write_rows,
)
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.data.rows import training_rows, validation_rows
from workers.data.streaming.mixed import one_pass
from workers.engine.request import AdapterRef, Chunk, TextRequest


@pytest.fixture
def place(trained: Trained, tmp_path: Path) -> ClusterSpec:
    """A storage folder whose registry has `home`, the version that was trained on one domain."""
    cluster = ClusterSpec(storage=str(tmp_path / "runs"))
    registry = Registry(cluster.store_url(), cluster.storage)
    version = registry.register("study", 0, trained.folder, trained.run.metrics)
    promote(registry, version, "home", actor="test", metric="validation/loss")
    return cluster


@pytest.fixture
def policy(trained: Trained, tmp_path: Path) -> Policy:
    """Trains on the home domain and 60 fresh rows of the other one."""
    train = trained.run.spec.model_dump(mode="json")
    train["optimizer"] |= {"steps": 40, "batch_size": 16}
    train["evaluation"] |= {"every": 40}
    job = JobSpec.model_validate(
        {
            "name": "tiny",
            "train": train,
            "search": {"space": {"optimizer.lr": {"choice": [2e-2]}}, "trials": 1},
        }
    )
    (tmp_path / "job.yaml").write_text(dump_job(job))
    fresh = write_rows(tmp_path / "fresh.jsonl", rows_of(clinic, 60, 9))
    values = {
        "job": str(tmp_path / "job.yaml"),
        "when": {"drift": {"windows": 2}},
        "data": fresh,
        "action": "canary",
    }
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(values))
    return load_policy(tmp_path / "policy.yaml")


def registry_of(place: ClusterSpec) -> Registry:
    return Registry(place.store_url(), place.storage)


def watching(policy: Policy, place: ClusterSpec, monitor: RouterHealth, runs: Any = None) -> Watch:
    registry = registry_of(place)
    signals = Signals(monitor.drift, measured_quality(registry, "home"))
    return Watch("home", policy, registry, place, signals, runs or HereRuns())


def monitor_of(place: ClusterSpec, trained: Trained, windows: int) -> RouterHealth:
    """That has seen so many windows of the other domain answered by the champion."""
    registry = registry_of(place)
    monitor = RouterHealth.of(HealthSpec(window=50), registry)
    champion = registry.champion("home")
    assert champion is not None
    for routing in trained.clinic[: 50 * windows]:
        monitor(answered(routing, version=champion.id))
    return monitor


def changed(policy: Policy, **changes: Any) -> Policy:
    return Policy.model_validate({**policy.model_dump(), **changes})


class Elsewhere:
    """Runs that a cluster does: here they never end."""

    def __init__(self) -> None:
        self.jobs: list[JobSpec] = []

    def start(self, job: JobSpec) -> None:
        self.jobs.append(job)

    def end(self, study: str) -> End | None:
        return None


def test_drift_leads_to_a_training_and_its_better_version_to_a_canary(
    policy: Policy,
    place: ClusterSpec,
    trained: Trained,
    ray_cluster: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch = watching(policy, place, monitor_of(place, trained, windows=3))
    said = watch.look()
    assert "canary" in said, said
    shown = capsys.readouterr().err
    for line in ("trial 0 · started · optimizer.lr 0.02", "trial 0 · finished · 40/40 steps"):
        assert line in shown, "a training that it waits for is shown as it goes on"
    assert "1 of 1 trials ended" in shown
    begun, ended = watch.journal.entries()
    assert (begun.kind, ended.kind) == ("submitted", "canary")
    assert "3 windows in a row" in begun.why
    assert begun.study == ended.study
    assert ended.evidence["candidate"] < ended.evidence["champion"]

    rollout = watch.registry.rollout("home")
    assert rollout is not None
    assert rollout.canary is not None
    assert (rollout.canary.version, rollout.canary.share) == (ended.version, 0.1)
    event = watch.registry.history("home")[-1]
    assert event.actor.startswith("watch of ")
    assert "on the same rows" in event.reason
    assert "drifted" in event.reason

    assert "cooldown" in watch.look(), "and not again at once"

    champion = watch.registry.version(ended.version or "")
    promote(
        watch.registry,
        champion,
        "home",
        actor="t",
        metric="validation/loss",
        reason="t",
        force=True,
    )
    challenge = ChampionChallenge.of("home", watch.registry, place, begun.study or "")
    kept = challenge.conclude(policy, "again")
    assert kept.kind == "kept"
    assert "not better" in kept.why
    weaker = ChampionChallenge(
        challenge.name,
        challenge.registry,
        challenge.study,
        challenge.candidate,
        watch.registry.version(rollout.champion),
    )
    proposed = weaker.conclude(changed(policy, action="propose"), "again")
    assert proposed.kind == "proposed"
    assert f"moetune promote {begun.study} --to home" in proposed.why


class Nobody:
    """A backend that is never asked."""

    def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        raise NotImplementedError

    async def load(self, adapter: AdapterRef) -> None:
        pass

    async def ready(self) -> bool:
        return True


@contextmanager
def endpoint(place: ClusterSpec, monitor: RouterHealth) -> Iterator[str]:
    """The URL of a gateway that tells what the monitor has seen."""
    catalog = ModelCatalog(registry_of(place), "base", Nobody().load)
    gateway = create_app(Nobody(), catalog, GatewayServices(routers=(health_routes(monitor),)))
    port = free_port("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(gateway, port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield url
    finally:
        server.should_exit = True
        thread.join(60)


def test_a_training_on_another_cluster_leads_to_a_canary_too(
    policy: Policy, place: ClusterSpec, trained: Trained, tmp_path: Path, ray_cluster: Session
) -> None:
    """The command as cron runs it: it submits, waits, and concludes, a look at a time."""

    def look(url: str) -> str:
        words = ["watch", "home", "--once", "--policy", str(tmp_path / "policy.yaml")]
        where = ["--url", url, "--address", ray_cluster.address, "--storage", place.storage]
        result = CliRunner().invoke(app, [*words, *where])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    with endpoint(place, RouterHealth.of(HealthSpec(window=50), registry_of(place))) as quiet:
        assert look(quiet).endswith("nothing to do\n"), "nobody has asked it for anything yet"
    journal = watching(policy, place, RouterHealth()).journal
    with endpoint(place, monitor_of(place, trained, windows=3)) as url:
        said, deadline = look(url), time.monotonic() + 240
        begun = journal.running()
        assert begun is not None, said
        assert f"{begun.study} runs since" in said
        while journal.running():
            assert time.monotonic() < deadline, said
            time.sleep(1)
            said = look(url)
        assert f"{begun.study}: canary: " in said
        assert "cooldown" in look(url)
    [job] = [job for job in JobClient(ray_cluster.address).list() if job.id == begun.study]
    assert (job.state, job.metadata["study"]) == ("SUCCEEDED", begun.study)
    rollout = registry_of(place).rollout("home")
    assert rollout is not None
    assert rollout.canary is not None
    assert rollout.canary.version == journal.entries()[-1].version


class Unreachable(Elsewhere):
    """A cluster that is away for a moment."""

    def start(self, job: JobSpec) -> None:
        raise ClusterError("http://head:8265: no dashboard answers")


def test_what_no_cluster_took_was_no_training(
    policy: Policy, place: ClusterSpec, trained: Trained
) -> None:
    monitor, there = monitor_of(place, trained, 3), Elsewhere()
    with pytest.raises(ClusterError, match="no dashboard"):
        watching(policy, place, monitor, Unreachable()).look()
    watch = watching(policy, place, monitor, there)
    assert watch.journal.entries()[-1].kind == "unsent"
    assert "runs since" in watch.look(), "it is sent as soon as there is a cluster"
    assert len(there.jobs) == 1


def test_answers_that_are_worse_than_wanted_are_a_reason_too(
    policy: Policy, place: ClusterSpec, trained: Trained, tmp_path: Path, ray_cluster: object
) -> None:
    labelled = write_rows(tmp_path / "labelled.jsonl", rows_of(home, 10, 11))
    runs = Elsewhere()
    for limit, begun in ((1e9, 0), (1e-9, 1)):
        rule = {"data": labelled, "metric": "loss", "limit": limit, "rows": 5, "every_hours": 1e-9}
        quality = changed(policy, when={"quality": rule})
        said = watching(quality, place, RouterHealth(), runs).look()
        assert len(runs.jobs) == begun, said
    assert "loss is" in said


def test_what_is_steady_is_left_alone(policy: Policy, place: ClusterSpec, trained: Trained) -> None:
    for windows in (0, 1):
        watch = watching(policy, place, monitor_of(place, trained, windows), Elsewhere())
        assert watch.look().endswith("nothing to do")
        assert watch.journal.entries() == []


def test_a_training_that_runs_is_waited_for(
    policy: Policy, place: ClusterSpec, trained: Trained
) -> None:
    watch = watching(policy, place, monitor_of(place, trained, 3), Elsewhere())
    watch.journal.note("submitted", "drift", study="tiny-1")
    assert "tiny-1 runs since" in watch.look()
    assert len(watch.journal.entries()) == 1


def test_a_training_without_a_version_has_failed(
    policy: Policy, place: ClusterSpec, trained: Trained
) -> None:
    """Its process was killed, say, before the study had begun."""
    watch = watching(policy, place, monitor_of(place, trained, 0))
    watch.journal.note("submitted", "drift", study="tiny-1")
    assert "tiny-1: failed: " in (said := watch.look())
    assert "no studies there yet" in said
    assert watch.look().endswith("nothing to do")


def test_two_watches_of_a_name_do_not_act_twice(
    policy: Policy, place: ClusterSpec, trained: Trained
) -> None:
    watch = watching(policy, place, monitor_of(place, trained, 0), Elsewhere())
    with watch.journal.alone(), pytest.raises(InputError, match="another watch"):
        watch.look()
    assert watch.look().endswith("nothing to do")


def test_trainings_of_a_day_are_counted(
    policy: Policy, place: ClusterSpec, trained: Trained
) -> None:
    watch = watching(
        changed(policy, cooldown_hours=0), place, monitor_of(place, trained, 3), Elsewhere()
    )
    watch.journal.note("submitted", "drift", study="tiny-1")
    watch.journal.note("kept", "no better", study="tiny-1")
    assert "1 times in 24 hours" in watch.look()


def test_a_name_without_a_champion_cannot_be_watched(policy: Policy, tmp_path: Path) -> None:
    place = ClusterSpec(storage=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no champion"):
        watching(policy, place, RouterHealth()).look()


def test_fresh_rows_come_first_and_a_fifth_is_held_out(
    policy: Policy, trained: Trained, tmp_path: Path
) -> None:
    from orchestrator.config.job import load_job

    job = with_fresh(load_job(policy.job), policy.data, policy.min_rows, tmp_path / "joined")
    rows = {
        name: [
            json.loads(line)
            for line in Path(getattr(job.train.data, name)).read_text().splitlines()
        ]
        for name in ("train", "validation")
    }
    tasks = {name: [row["task"] for row in found] for name, found in rows.items()}
    assert tasks["train"] == ["clinic"] * 48 + ["home"] * 200
    assert tasks["validation"] == ["clinic"] * 12 + ["home"] * 300
    with pytest.raises(InputError, match="holds 60 rows, but min_rows is 61"):
        with_fresh(load_job(policy.job), policy.data, 61, tmp_path / "joined")


def test_several_sources_stay_apart_and_fresh_rows_are_one_more(
    job: JobSpec, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    files = {}
    for name, count in (("a", 3), ("b", 2), ("fresh", 10)):
        files[name] = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"{name}{i}", "target": "t"} for i in range(count)]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [str(files["a"]), {"source": str(files["b"]), "weight": 0.5, "task": "quiz"}]
    job = job.model_copy(update={"train": make_spec(data__train=sources, data__max_rows=2)})
    joined = with_fresh(job, str(files["fresh"]), 1, tmp_path / "joined")
    files["b"].write_text("")  # what was joined depends no more on what it came from
    data = joined.train.data
    assert [(one.weight, one.task) for one in data.sources] == [(1, None), (1, None), (0.5, "quiz")]
    assert [(row.prompt, row.task) for row in training_rows(data)] == [
        ("fresh0", "default"),
        ("fresh1", "default"),
        ("a0", "default"),
        ("a1", "default"),
        ("b0", "quiz"),
        ("b1", "quiz"),
    ]


def test_what_is_streamed_is_not_copied_and_fresh_rows_are_one_source_more(
    job: JobSpec, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    files = {}
    for name, count in (("own", 3), ("compared", 2), ("fresh", 10)):
        files[name] = str(tmp_path / f"{name}.jsonl")
        rows = [{"prompt": f"{name}{i}", "target": "t"} for i in range(count)]
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = make_spec(
        data__train=files["own"], data__validation=files["compared"], data__streaming=True
    )
    job = job.model_copy(update={"train": train})
    data = with_fresh(job, files["fresh"], 1, tmp_path / "joined").train.data
    assert [one.source for one in data.sources] == [
        str(tmp_path / "joined" / "train.jsonl"),
        files["own"],
    ]
    assert [row.prompt for row in validation_rows(data)] == [
        "fresh4",
        "fresh9",
        "compared0",
        "compared1",
    ]
    assert len(list(one_pass(data, 0, 0))) == 8 + 3


def test_what_is_held_out_stays_so_and_fresh_rows_are_split_alike(
    job: JobSpec, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    files = {}
    for name in ("own", "fresh"):
        files[name] = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"{name}{i}", "target": "t"} for i in range(200)]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = make_spec(data__train=str(files["own"]), data__validation__share=0.25)
    joined = with_fresh(
        job.model_copy(update={"train": train}), str(files["fresh"]), 1, tmp_path / "joined"
    ).train.data
    held_out = [row.prompt for row in validation_rows(joined)]
    own = [row.prompt for row in validation_rows(train.data)]
    assert [prompt for prompt in held_out if prompt.startswith("own")] == own
    assert 10 < len(held_out) - len(own) < 100
    assert len(list(training_rows(joined))) == 400 - len(held_out)


def test_fresh_rows_may_be_laid_out_in_another_way(
    job: JobSpec, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    """Joined in one file, they were refused as two layouts in one source."""
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "i", "output": "o"}]))
    (tmp_path / "fresh.jsonl").write_text('{"prompt": "p", "target": "t", "task": "new"}\n')
    own = str(tmp_path / "own.json")
    job = job.model_copy(update={"train": make_spec(data__train=own, data__validation=own)})
    joined = with_fresh(job, str(tmp_path / "fresh.jsonl"), 1, tmp_path / "joined").train.data
    rows = [(row.prompt, row.target, row.task) for row in training_rows(joined)]
    assert rows == [("p", "t", "new"), ("i", "o", "default")]
    assert [row.prompt for row in validation_rows(joined)] == ["i"]
    (tmp_path / "fresh.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(InputError, match=r"fresh\.jsonl: line 1: no column 'prompt', 'target'"):
        with_fresh(job, str(tmp_path / "fresh.jsonl"), 1, tmp_path / "joined")


def test_what_is_no_text_stays_none_in_joined_files(
    job: JobSpec, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    """Bytes are refused where they lie; joined, they were trained on as `b'4'`."""
    fresh = tmp_path / "fresh.parquet"
    pq.write_table(pa.table({"prompt": ["p"], "target": [b"4"]}), fresh)
    job = job.model_copy(update={"train": make_spec()})
    job = with_fresh(job, str(fresh), 1, tmp_path / "joined")
    with pytest.raises(InputError, match="line 1: column 'target' must hold text, not "):
        list(training_rows(job.train.data))


def test_decimals_are_the_text_that_training_takes_them_for(
    job: JobSpec, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh.parquet"
    pq.write_table(pa.table({"prompt": ["p"], "target": [Decimal("1.50")]}), fresh)
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "q", "target": "t"}\n')
    job = job.model_copy(update={"train": make_spec(data__train=str(own))})
    joined = with_fresh(job, str(fresh), 1, tmp_path / "joined").train.data
    assert [row.target for row in training_rows(joined)] == ["1.50", "t"]


def test_a_diary_outlives_its_writer_and_a_cut_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "watch" / "diary.jsonl")
    journal.note("submitted", "drift", study="s-1")
    with (tmp_path / "watch" / "diary.jsonl").open("a") as file:
        file.write('{"at": "2026-11')
    running = Journal(tmp_path / "watch" / "diary.jsonl").running()
    assert running is not None
    assert running.study == "s-1"
    journal.note("failed", "killed\u2028by the kernel", study="s-1")
    assert journal.running() is None
    assert journal.begun_since(timedelta(days=1)) == 1
    last = journal.last("failed")
    assert last is not None
    assert datetime.now(UTC) - last.at < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"when": {}}, "at least one of drift and quality"),
        ({"canary": "a lot"}, "share 'a lot'"),
        ({"jobs": "x"}, "did you mean job"),
        ({"action": "promote"}, "action"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_in_one_line(
    policy: Policy, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**policy.model_dump(mode="json"), **changes}))
    with pytest.raises(InputError, match=said) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_a_policy_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(InputError, match="is a mapping"):
        load_policy(tmp_path / "list.yaml")
