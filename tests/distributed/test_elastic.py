"""An elastic run goes on with fewer workers after the loss of a node, and grows back."""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from search_spaces.spec import SearchSpec
from tests.distributed.survivors import (
    DRIVER,
    PATIENCE,
    Raylets,
    check_losses,
    check_rows,
    event,
    kinds,
    process,
    rows_file,
    steps_taken,
    trained,
    wait_until,
)
from tests.processes import run_together
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.run.events import read_events
from workers.run.record import read_rows

pytestmark = pytest.mark.endurance
SpecMaker = Callable[..., TrainSpec]


@pytest.fixture
def spec(make_spec: SpecMaker, tmp_path: Path) -> TrainSpec:
    rows = rows_file(tmp_path)
    return make_spec(
        model__device="cpu",
        loss__load_balance_weight=0.0,  # its f_e is counted over one pass of all workers
        data__train=str(rows),
        data__validation=str(rows),
        data__record_rows=True,
        optimizer__steps=450,
        optimizer__lr=2e-5,
        optimizer__micro_batch_size=1,
        evaluation__every=150,
        checkpoint__every=10,
        parallel__workers={"min": 1, "max": 2, "check_every_s": 2},
    )


@pytest.fixture
def raylets(processes: None) -> Iterator[Raylets]:
    cluster = Raylets()
    yield cluster
    cluster.close()


@pytest.mark.usefixtures("processes")
def test_a_lost_node_is_done_without_and_a_new_one_taken(
    spec: TrainSpec, raylets: Raylets, tmp_path: Path
) -> None:
    changes = {"parallel.workers": 1, "optimizer.micro_batch_size": None}  # the same sums, sooner
    alone = override(spec, changes, "test")
    (tmp_path / "unbroken").mkdir()
    run_together(trained, 1, alone, tmp_path / "unbroken", processes=1)

    nodes, folder = [raylets.add(), raylets.add()], tmp_path / "run"
    raylets.env["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    # A GPU for each worker: one worker on each node, and none on the head.
    search = SearchSpec(gpus_per_worker=1, retries=3)
    run = [spec.model_dump_json(), search.model_dump_json(), str(folder)]
    driver = raylets.driver(DRIVER, *run)
    try:
        wait_until(lambda: driver.poll() is not None or steps_taken(folder) >= 14)
        lost = process(folder, 1)
        next(node for node in nodes if node.runs(lost)).kill()
        wait_until(lambda: driver.poll() is not None or kinds(folder)[-1] == "resumed")
        assert "with 1 worker" in event(folder, "resumed").message
        raylets.add()
        assert driver.wait(PATIENCE) == 0
    finally:
        driver.kill()
        driver.wait()
    check_losses(folder, tmp_path / "unbroken", rel=1e-5)
    check_rows(spec, folder)
    sizes = [len(workers) for _, workers in sorted(read_rows(folder).items())]
    assert [size for size, _ in groupby(sizes)] == [2, 1, 2]
    # Which is noticed first: that the node is gone, or that nobody answers the other worker.
    assert {one.kind for one in read_events(folder)} & {"lost", "failed"}
