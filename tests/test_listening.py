"""Where a local cluster listens while it trains and while it serves: on loopback, but for what is
named here."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from cluster.session import Session
from orchestrator.config.serve import ServeSpec
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.serve.deploy import deploy, undeploy
from orchestrator.serve.served_base import served_base
from orchestrator.tuning.trainer import fit
from tests.forked_workers import forks_of
from tests.listening import Listener, cluster_processes, listeners
from workers.config.train import TrainSpec
from workers.run.record import Metrics, RunPlan

GROUP, REPLICA = "ray::RayTrainWorker", "ray::ServeReplica:"
CALLS = [
    f"HandleRequest{how}" for how in ("", "Streaming", "WithRejection", "WithRejectionStreaming")
]
"""Between Serve's deployments."""


def _listeners(cluster: Session) -> list[Listener]:
    """Of the cluster's processes, its forked workers, and of this one, its driver."""
    assert cluster.token_file is not None
    here = cluster_processes(cluster.token_file.parent)
    return listeners([*here, *forks_of(psutil.Process()), psutil.Process()])


def test_a_group_listens_on_loopback_only(
    ray_cluster: Session, make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    looks: list[list[Listener]] = []

    def look(_: Metrics) -> None:
        looks.append(_listeners(ray_cluster))

    spec = make_spec(optimizer__steps=20, evaluation__every=1, parallel__workers=2)
    fit(spec, RunPlan(tmp_path / "run", "study"), on_progress=look)
    found = [one for one in looks[0] if one.process.startswith(GROUP)]
    assert len({one.process for one in found}) >= 1
    assert len(found) >= 5, "of two workers their own ports and gloo's, and of one the rendezvous"
    assert [one for one in looks[0] if not one.on_loopback] == []


@pytest.fixture
def endpoint(
    ray_cluster: Session, make_adapter: Callable[..., Path], tmp_path: Path
) -> Iterator[None]:
    url = f"sqlite:///{tmp_path}/moetune.db"
    registry = Registry(url, tmp_path)
    version = registry.register("study", 1, make_adapter(1), {})
    why = {"actor": "test", "metric": "validation/loss", "reason": "test"}
    promote(registry, version, "home", **why, force=True)
    spec = ServeSpec(port=0, max_batch_tokens=128, cache_tokens=512)
    deploy(spec, served_base(url, tmp_path, "home"))
    yield
    undeploy()


@pytest.mark.usefixtures("endpoint")
def test_an_endpoint_listens_on_loopback_but_for_the_replicas_calls_to_each_other(
    ray_cluster: Session,
) -> None:
    """Ray Serve binds these to all interfaces, and has no setting for it. Who has no token of the
    cluster gets no answer, so that nothing is unpickled for them."""
    beyond = [one for one in _listeners(ray_cluster) if not one.on_loopback]
    assert [one.process for one in beyond if not one.process.startswith(REPLICA)] == []
    assert len(beyond) == len({one.process for one in beyond}) == 2, "the engine and the gateway"
    for one in beyond:
        for method in CALLS:
            assert _refusal(one.port, method) == grpc.StatusCode.UNAUTHENTICATED, method


def _refusal(port: int, method: str) -> object:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream(f"/ray.serve.ASGIService/{method}")
        with pytest.raises(grpc.RpcError) as refused:
            list(call(b"", timeout=30))
    return refused.value.code()
