"""Studies for tests of what reads and writes them."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import JobSpec
from orchestrator.tuning.lifecycle import begin
from orchestrator.tuning.storage import database_file, storage
from orchestrator.tuning.study import trial_name
from tests.orchestrator.postgres import Postgres, missing, running
from tests.orchestrator.traffic import Trained, train_on_home
from workers.config.adapter import AdapterSpec
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.run.record import RunRecord

Play = Callable[..., Any]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server. Who stops it starts it again."""
    pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
    if why := missing():
        pytest.skip(why)
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new store, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_store()


@pytest.fixture(scope="session")
def job_in() -> Callable[[Path], JobSpec]:
    """job_in(storage): a job of 10 trials on a model and data that nobody looks at."""

    def make(storage_folder: Path) -> JobSpec:
        return JobSpec.model_validate(
            {
                "name": "home",
                "train": {
                    "model": {"path": "base"},
                    "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
                    "optimizer": {"steps": 40},
                    "evaluation": {"every": 10},
                },
                "search": {"trials": 10, "space": "moe_lora", "startup_trials": 4},
                "cluster": {"storage": str(storage_folder)},
            }
        )

    return make


@pytest.fixture
def job(job_in: Callable[[Path], JobSpec], tmp_path: Path) -> JobSpec:
    """Such a job with a storage folder of its own."""
    return job_in(tmp_path / "runs")


EARLY = {"best": 0.75, "best_step": 20, "waited": 1, "stopped": 1}
"""What the last report of a trial that ended early says of it."""


def report(values: Mapping[str, Any], step: int, number: int) -> dict[str, Any]:
    """What a trial of these values might report: plausible, and a function of its arguments."""
    shape = AdapterSpec(num_experts=values.get("adapter.num_experts", 4), top_k=1)
    loss = 2.0 / (1 + step / 15) + 0.02 * number + abs(values.get("optimizer.lr", 2e-3) - 1e-3) * 50
    tasks = {
        task: {"metric": metric, "value": max(0.0, 1 - loss / top), "loss": loss, "rows": 20}
        for task, metric, top in (("intent", "exact_match", 2), ("reply", "rouge_l", 3))
    }
    counts = {f"layers.{i}.mlp": shape.experts_in(i, 4) for i in range(4)}
    routing = {layer: load(experts) for layer, experts in counts.items() if experts > 1}
    return {
        "step": step,
        "steps": 40,
        "train": {"loss": loss + 0.1},
        "validation": {"loss": loss, "score": 0.5, "tasks": tasks, "routing": routing},
    }


def load(experts: int) -> dict[str, Any]:
    """A router's statistics, nearly even."""
    share = [1 / experts + (0.4 / experts) * (-1) ** e * (e > 0) for e in range(experts)]
    return {"load": [s / sum(share) for s in share], "entropy": 0.9}


@pytest.fixture(scope="session")
def study_tables(
    job_in: Callable[[Path], JobSpec], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """A SQLite file as Optuna makes it, which takes a fifth of a second, without a study."""
    cluster = job_in(tmp_path_factory.mktemp("tables")).cluster
    with storage(cluster, create=True):
        pass
    file = database_file(cluster)
    assert file
    return file.read_bytes()


@pytest.fixture(scope="session")
def play(study_tables: bytes) -> Play:
    """play(job, ends, resume=False, register=…): run trials through Optuna and their folders as
    Tune would, without Tune. `ends` says how each one ends: finished, early (finished at step
    30 of 40), stopped, failed or cut (off); `register` gives the version of one that has finished,
    by its number."""
    return partial(_play, study_tables)


def _play(
    tables: bytes,
    job: JobSpec,
    ends: list[str],
    resume: bool = False,
    register: Callable[[int], str] = "{:012x}".format,
) -> list[dict[str, Any]]:
    from ray.tune.utils.util import flatten_dict

    from orchestrator.tuning.searcher import StudySearch

    job.study_folder().mkdir(parents=True, exist_ok=True)
    if (file := database_file(job.cluster)) and not file.exists():
        file.write_bytes(tables)
    with storage(job.cluster, create=True) as store:
        study = begin(job, resume, store)
        search = StudySearch(job, study, store, register)
        suggested = []
        for index, end in enumerate(ends):
            trial_id = f"{index}{'resumed' if resume else ''}"
            values = search.suggest(trial_id)
            suggested.append(values)
            number = search.trial(trial_id).number
            record = RunRecord(job.study_folder() / "trials" / trial_name(number))
            spec = override(job.train, values, "test")
            record.begin(spec)
            steps = range(10, {"finished": 41, "early": 31}.get(end, 21), 10)
            for step in steps:
                metrics = report(values, step, number)
                if end == "early" and step == 30:
                    metrics["early_stopping"] = EARLY
                record.add(metrics)
                search.on_trial_result(trial_id, flatten_dict(metrics))
            if end in ("finished", "early", "stopped"):
                search.on_trial_complete(trial_id, flatten_dict(metrics))
            elif end == "failed":
                search.note_failure(trial_id, "OutOfMemoryError: <b>CUDA</b> out of memory")
                search.on_trial_complete(trial_id, error=True)
        return suggested


@pytest.fixture(scope="session")
def trained(
    make_spec: Callable[..., TrainSpec], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """A router that was trained on one domain, and requests of this and of another one."""
    return train_on_home(make_spec, tmp_path_factory.mktemp("trained"))
