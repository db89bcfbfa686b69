"""Router health as Prometheus reads it from a real cluster, and the parts of a gateway together."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.session import Session
from orchestrator.config.serve import ServeSpec
from orchestrator.gateway.services import HealthServices
from orchestrator.registry.registry import Registry
from orchestrator.router_health.metrics import LAYERS, VERSIONS
from tests.orchestrator.traffic import Trained, answered
from workers.engine.routing.types import RequestRouting


@pytest.fixture
def gateway(ray_cluster: Session, tmp_path: Path) -> Iterator[Any]:
    """The parts in a process of the cluster, as in a gateway's replica."""
    import ray

    @ray.remote(num_cpus=0)
    class Gateway:
        async def begin(self) -> None:
            registry = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
            self.parts = HealthServices.of(registry, ServeSpec(), tmp_path)
            self.task = asyncio.create_task(self.parts.run())

        async def answer(self, routing: RequestRouting) -> None:
            self.parts.observe(answered(routing))

        async def end(self) -> None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    gateway = Gateway.remote()
    ray.get(gateway.begin.remote())
    yield gateway
    ray.kill(gateway)


def shown(version: str) -> dict[str, list[dict[str, str]]]:
    """Labels of each series of a version, from the cluster's metrics port."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    found: dict[str, list[dict[str, str]]] = {}
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("version") == version:
                found.setdefault(sample.name.removeprefix("ray_"), []).append(sample.labels)
    return found


def test_a_gateway_shows_its_routers_and_keeps_its_audit(
    gateway: Any, trained: Trained, tmp_path: Path
) -> None:
    import ray

    ray.get([gateway.answer.remote(one) for one in trained.home[:20]])
    wanted = {one.name for one in (*LAYERS, *VERSIONS)} - {"moetune_router_drift_score"}
    end = time.monotonic() + 60
    while not wanted <= (found := shown("3f9a1b2c3d4e")).keys() and time.monotonic() < end:
        time.sleep(0.5)
    assert wanted <= found.keys()
    assert {labels["layer"] for labels in found["moetune_router_cv"]} == {
        "layers.0.mlp",
        "layers.1.mlp",
    }
    assert not [one for series in found.values() for one in series if "expert" in one]
    ray.get(gateway.end.remote())
    [file] = (tmp_path / "audit").glob("*.parquet")
    assert pq.read_table(file).num_rows == 20
