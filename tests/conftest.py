"""Fixtures that several folders of tests share."""

import gc
import json
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sqlalchemy import Engine, event

from cluster.session import Session, session
from orchestrator.demo.base_model import prepare
from tests.forked_workers import forked_workers
from tests.tiny import write_adapter, write_model
from workers.config.base import override
from workers.config.train import TrainSpec

# Ray gives a worker of one core one thread. With as many here, before torch is loaded, a run in
# this process computes the same bits.
os.environ["OMP_NUM_THREADS"] = "1"

pytest_plugins = ["tests.tiers", "tests.balance"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is imported and collected stays, and the garbage collector looks at none of it: a third
    of the time that collecting takes would be its own. Later it comes by seldom by itself, since
    it does after each file."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of what only a GPU runs are skipped without one."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here: what only a GPU runs is not tested")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a test of the shared cluster has left keeps no CPU from the next one; what a file has
    imported is looked at by the garbage collector once, and not whenever an engine closes."""
    if "ray_cluster" in getattr(item, "fixturenames", ()):
        from tests.leftovers import free_the_cluster

        free_the_cluster()
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A case of bytes is named by its argument: bytes may hold the hour (gzip's header does), and
    pytest-xdist refuses a run whose processes name their tests differently."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded rows of tests lie in no user's cache; processes that tests start share this one."""
    os.environ["MOETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _stores_that_need_not_outlive_the_machine() -> Iterator[None]:
    """SQLite waits for no disk in the tests' own processes, half of the time that a store's tests
    take; it is as whole after a killed process as ever."""
    event.listen(Engine, "connect", _wait_for_no_disk)
    yield
    event.remove(Engine, "connect", _wait_for_no_disk)


def _wait_for_no_disk(connection: object, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF").close()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (2 layers, width 64) and a byte-level ChatML tokenizer."""
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def smollm2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of SmolLM2-135M-Instruct as the demo has it; it is written once, which takes ten
    seconds, for all processes of the test run."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(shared / "smollm2.lock"):
        return prepare(shared / "smollm2")


@pytest.fixture(scope="session")
def make_adapter(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`make_adapter(seed, rank=4, …)`: folder of an adapter of the tiny model, its weights random
    and large enough to change most tokens. Fields are AdapterSpec's."""

    def make(seed: int, **fields: object) -> Path:
        folder = tmp_path_factory.mktemp("adapters") / f"adapter-{seed}"
        return write_adapter(tiny_model_dir, folder, seed, **fields)

    return make


@pytest.fixture(scope="session")
def forks() -> Iterator[None]:
    """What tests start has imported torch and transformers already."""
    with forked_workers():
        yield


@pytest.fixture(scope="session")
def ray_cluster(forks: None) -> Iterator[Session]:
    """The one cluster of this process of the test run: 4 logical CPUs, started at its first use.

    This process is connected to it, so that `ray.get(…)` works as it stands, and `session(…)`
    with no address, `auto` or `ray_cluster.address` joins it. Another process (the command line in
    a test) reaches it by `ray_cluster.address`, a job by `ray_cluster.dashboard_url` as well;
    both find its token. Remove what you leave in it: actors, applications, jobs. Only a test of
    starting and stopping starts a cluster of its own, in a process of its own.
    """
    with session(num_cpus=4) as connected:
        yield connected


@pytest.fixture(scope="session")
def processes(forks: None) -> None:
    """Taken by what starts processes of its own."""


@pytest.fixture(scope="session")
def benchmark(forks: None) -> None:
    """Taken by the run of a benchmark at sizes that show that it runs."""


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a browser; what takes it is skipped where there is none."""
    from tests.orchestrator.browser import CHROMIUM

    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    return CHROMIUM


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 16 rows in two tasks: `call`, a text to write, and `room`, a choice."""
    rooms = ("kitchen", "office", "hall", "cellar")
    rows: list[dict[str, object]] = []
    for room in rooms:
        for verb, state in (("start", "on"), ("stop", "off")):
            call = f"set(room={room}, to={state})"
            rows += [
                {"prompt": f"{verb} {room}", "target": call, "task": "call", "metric": "slot_f1"},
                {
                    "prompt": f"{verb} {room} where?",
                    "target": room,
                    "task": "room",
                    "metric": "acc",
                },
            ]
            rows[-2] |= {"choices": None}
            rows[-1] |= {"choices": rooms}
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def make_spec(tiny_model_dir: Path, rows_file: Path) -> Callable[..., TrainSpec]:
    """`make_spec(optimizer__steps=8, …)`: a run of seconds on the tiny model and `rows_file`;
    keywords are fields of TrainSpec with __ for the dots."""
    spec = TrainSpec.model_validate(
        {
            "model": {"path": str(tiny_model_dir)},
            "adapter": {"num_experts": 4, "rank": 4, "alpha": 8, "dropout": 0.0},
            "data": {"train": str(rows_file), "validation": str(rows_file), "max_length": 128},
            "optimizer": {"lr": 5e-3, "steps": 4, "batch_size": 8},
            "evaluation": {"every": 2, "generate": False, "batch_size": 16, "max_new_tokens": 24},
        }
    )

    def make(**changes: object) -> TrainSpec:
        return override(spec, {k.replace("__", "."): v for k, v in changes.items()}, "test")

    return make
