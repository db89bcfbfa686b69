"""A real gateway over a real engine: health, attribution and audit of what it answers."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import uvicorn
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.client import Client
from orchestrator.config.audit import AuditSpec
from orchestrator.config.health import HealthSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.management_routes import health_routes
from orchestrator.gateway.services import GatewayServices
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.retraining.signals import endpoint_drift
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.router_health.metrics import LAYERS, VERSIONS, of_layer, of_version
from orchestrator.router_health.monitor import RouterHealth
from orchestrator.telemetry.audit_log import AuditLog
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

PROMPTS = [f"{verb} the {room} light" for verb in ("start", "stop") for room in "abcdefgh"]


@dataclass(frozen=True)
class Served:
    """An endpoint that has answered PROMPTS."""

    url: str
    version: str
    monitor: RouterHealth
    audit: AuditLog
    audited: Path
    storage: Path


@pytest.fixture(scope="module")
def served(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    version = registry.register("study", 0, make_adapter(21), {"validation": {"loss": 1.0}})
    promote(registry, version, "home", actor="t", metric="validation/loss", reason="t", force=True)
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = ContinuousEngine(base, Limits(max_batch_tokens=64, cache_tokens=1024))
    text = TextEngine(engine, base.tokenizer)
    monitor = RouterHealth.of(HealthSpec(window=10), registry)
    audit = AuditLog(AuditSpec(), folder / "audit")
    services = GatewayServices(observers=(monitor, audit), routers=(health_routes(monitor),))
    gateway = create_app(text, ModelCatalog(registry, "tiny-llama", text.load), services)
    server = uvicorn.Server(uvicorn.Config(gateway, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        url = wait_for(server)
        for prompt in PROMPTS:
            list(Client(url).ask("home", prompt, temperature=0, max_tokens=4))
        yield Served(url, version.id, monitor, audit, folder / "audit", folder)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        audit.close()
        engine.close()


def wait_for(server: uvicorn.Server) -> str:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if server.started:
            url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            if httpx.get(f"{url}/ready").is_success:
                return url
        time.sleep(0.05)
    raise AssertionError("the gateway does not get ready")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output + repr(done.exception)
    return str(done.stdout)


def test_health_is_told_in_a_table_and_as_json(served: Served) -> None:
    shown = run("health", "home", "--url", served.url)
    assert f"home@{served.version}: {len(PROMPTS)} requests" in shown
    assert "layers.1.mlp" in shown
    assert "drift: unknown: no reference: the first 200 requests make one" in shown
    told = json.loads(run("health", f"home@{served.version}", "--url", served.url, "--json"))
    [version] = told["versions"]
    assert version["requests"] == len(PROMPTS)
    for layer in version["layers"]:
        assert sum(layer["load"]) == pytest.approx(1)
        assert len(layer["load"]) == 4
        assert 0 < layer["entropy"] <= 1


def test_a_name_that_nobody_answered_to_is_refused_in_one_line(served: Served) -> None:
    for name, said in (("house", "no version with routers"), ("home@..", "name: ")):
        with pytest.raises(InputError, match=said):
            Client(served.url).get(f"/moetune/v1/health/{name}")


def test_a_watch_reads_the_champions_drift(served: Served) -> None:
    drift = endpoint_drift(Client(served.url), "home")
    verdict = drift(served.version)
    assert verdict is not None
    assert verdict.state == "unknown"
    assert drift("0" * 12) is None


def test_a_look_at_a_steady_name_does_nothing(served: Served, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("{job: smoke, data: fresh.jsonl, when: {drift: {windows: 2}}}")
    where = ("--url", served.url, "--storage", str(served.storage))
    shown = run("watch", "home", "--policy", str(policy), "--once", *where)
    assert shown == f"home@{served.version}: nothing to do\n"
    done = CliRunner().invoke(app, ["watch", "../home", "--policy", str(policy), "--once", *where])
    assert isinstance(done.exception, InputError)


def test_explain_writes_a_page_of_all_tokens(served: Served, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ("explain", "home", "<b>light</b>", "--url", served.url, "--max-tokens", "5")
    run(*arguments, "--out", str(page))
    text = page.read_text()
    assert "&lt;b&gt;light&lt;/b&gt;" in text
    assert "<b>light" not in text
    told = json.loads(run(*arguments, "--json"))
    routing = told["routing"]
    assert routing["tokens"] == len(routing["by_token"]) == len(routing["texts"])
    assert routing["tokens"] == told["prompt_tokens"] + 5 - 1, "the last token is never read"
    assert "<b>light</b>" in "".join(routing["texts"])
    for place, layer in enumerate(routing["layers"]):
        slots = [choice for token in routing["by_token"] for choice in token[place]["experts"]]
        assert [slots.count(expert) for expert in range(4)] == list(layer["load"])
    assert text.count('class="view"') == len(routing["layers"])
    assert text.count("<span") == len(routing["layers"]) * routing["tokens"]


def test_the_base_has_no_experts_to_explain(served: Served, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["explain", "tiny-llama", "hello", "--url", served.url, "--max-tokens", "3"]
    )
    assert isinstance(done.exception, InputError)
    assert "tells no routing" in str(done.exception)


def test_every_request_has_its_record(served: Served) -> None:
    served.audit.close()
    files = served.audited.glob("*.parquet")
    records = [record for file in files for record in pq.read_table(file).to_pylist()]
    mine = [one for one in records if one["version"] == served.version]
    assert len(mine) >= len(PROMPTS)
    first = min(mine, key=lambda one: one["at"])
    assert (first["name"], first["status"], first["completion_tokens"]) == ("home", 200, 4)
    assert first["prompt"] is None
    assert [place["layer"] for place in first["experts"]] == ["layers.0.mlp", "layers.1.mlp"]
    assert all(sum(place["load"]) == 2 * first["routed_tokens"] for place in first["experts"])


def test_metrics_have_one_value_for_each_layer_and_version(served: Served) -> None:
    [(name, health)] = served.monitor.everything()
    assert name == "home"
    shown: dict[str, Any] = of_version(health)
    assert set(shown) == {one.name for one in VERSIONS} - {"moetune_router_drift_score"}
    for layer in health.layers:
        values = of_layer(layer)
        assert set(values) == {one.name for one in LAYERS}
        assert all(map(math.isfinite, values.values()))
