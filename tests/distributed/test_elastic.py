"""An elastic run goes on with fewer workers after the loss of a node, and grows back."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from cluster.session import Session
from orchestrator.spec import SearchSpec
from tests.distributed.survivors import (
    PATIENCE,
    Node,
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
from workers.spec import TrainSpec, override
from workers.train.events import read_events
from workers.train.rows_taken import read_rows

pytestmark = pytest.mark.slow
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
def add_node(ray_cluster: Session) -> Iterator[Callable[[], Node]]:
    nodes: list[Node] = []

    def add() -> Node:
        nodes.append(Node(ray_cluster))
        return nodes[-1].wait()

    yield add
    for node in nodes:
        node.close()


def test_a_lost_node_is_done_without_and_a_new_one_taken(
    spec: TrainSpec,
    add_node: Callable[[], Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    alone = override(spec, {"parallel.workers": 1}, "test")
    (tmp_path / "unbroken").mkdir()
    mp.spawn(trained, (1, alone, tmp_path / "unbroken"), nprocs=1)

    nodes, folder = [add_node(), add_node()], tmp_path / "run"
    # A GPU for each worker, which only the further nodes have: one worker on each.
    with running(spec, folder, SearchSpec(gpus_per_worker=1, retries=3)) as run:
        wait_until(lambda: steps_taken(folder) >= 14, run)
        lost = process(folder, 1)
        next(node for node in nodes if node.runs(lost)).kill()
        wait_until(lambda: kinds(folder)[-1] == "resumed", run)
        assert "with 1 worker" in event(folder, "resumed").message
        add_node()
        run.result(PATIENCE)
    check_losses(folder, tmp_path / "unbroken", rel=1e-5)
    check_rows(spec, folder)
    sizes = [len(workers) for _, workers in sorted(read_rows(folder).items())]
    assert sizes == sorted(sizes[: sizes.index(1)]) + [1] * sizes.count(1) + [2] * (
        len(sizes) - sizes.index(1) - sizes.count(1)
    )
    assert sizes[0] == sizes[-1] == 2
    assert {"lost"} < set(kinds(folder))
    assert [e.message.split("with ")[1] for e in read_events(folder) if "with " in e.message] == [
        "2 workers",
        "1 worker",
        "2 workers",
    ]
