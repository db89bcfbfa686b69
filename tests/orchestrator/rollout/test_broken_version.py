"""A version that is broken, on a real engine: kept from traffic, or taken out of it by itself."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices, RolloutServices
from orchestrator.registry.models import Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.replicas.golden import Golden
from orchestrator.replicas.readiness import Acknowledged, TwoPhases, acknowledge
from orchestrator.rollout.catalog import ModelCatalog
from tests.tiny import write_adapter
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

TEXT: dict[str, Any] = {"model": "home", "prompt": "hello", "temperature": 0, "max_tokens": 4}


class Alone(TextEngine):
    """The only replica of its fleet."""

    async def check(self, adapter: AdapterRef, golden: Golden) -> list[Acknowledged]:
        return [await acknowledge(self, adapter, golden)]


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[Alone]:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    made = ContinuousEngine(base, Limits(max_batch_tokens=64, cache_tokens=256))
    yield Alone(made, base.tokenizer)
    made.close()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)


@pytest.fixture
def pair(registry: Registry, tiny_model_dir: Path, tmp_path: Path) -> list[Version]:
    """A good version, and one whose weights lead beyond all numbers."""
    good = write_adapter(tiny_model_dir, tmp_path / "good", 71)
    broken = write_adapter(tiny_model_dir, tmp_path / "broken", 72, spread=1e30)
    return [
        registry.register("s", trial, folder, {}) for trial, folder in enumerate((good, broken))
    ]


def put(registry: Registry, version: Version, **how: Any) -> None:
    forced: dict[str, Any] = {"actor": "test", "reason": "test", "force": True}
    promote(registry, version, "home", metric="loss", stage=stage(**how), **forced)


@asynccontextmanager
async def gateway(engine: Alone, registry: Registry, load: Any) -> AsyncIterator[httpx.AsyncClient]:
    catalog = ModelCatalog(registry, "tiny-llama", load)
    rollouts = RolloutServices.of(registry, catalog, GuardSpec())
    services = GatewayServices(
        observers=(rollouts.observe,), routers=(rollouts.router,), tasks=(rollouts.run,)
    )
    app = create_app(engine, catalog, services)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as web,
    ):
        while not (await web.get("/ready")).is_success:
            await asyncio.sleep(0.02)
        yield web


async def until(web: httpx.AsyncClient, **wanted: Any) -> Any:
    for _ in range(1000):
        state = (await web.get("/moetune/v1/rollouts/home")).json()
        if all(state[key] == value for key, value in wanted.items()):
            return state
        await asyncio.sleep(0.02)
    return pytest.fail(f"{wanted} does not come, but {state}")


async def ask(web: httpx.AsyncClient) -> Any:
    return (await web.post("/v1/completions", json=TEXT)).json()


def test_the_golden_prompt_keeps_it_from_traffic(
    engine: Alone, registry: Registry, pair: list[Version]
) -> None:
    good, broken = pair
    put(registry, good)

    async def main() -> None:
        async with gateway(engine, registry, TwoPhases(engine, Golden("hello", 4))) as web:
            put(registry, broken)
            for _ in range(1000):
                state = await until(web, champion=broken.id)
                if state["refused"]:
                    break
                await asyncio.sleep(0.02)
            assert "golden prompt" in state["refused"][broken.id]
            assert (await ask(web))["system_fingerprint"] == good.id

    asyncio.run(asyncio.wait_for(main(), 60))
    assert len(registry.history("home")) == 2


@pytest.mark.parametrize("how", [{}, {"canary": "99.999%"}, {"shadow": True}])
def test_one_answer_of_it_ends_it(
    how: dict[str, Any], engine: Alone, registry: Registry, pair: list[Version]
) -> None:
    good, broken = pair
    put(registry, good)
    put(registry, broken, **how)

    async def main() -> None:
        async with gateway(engine, registry, engine.load) as web:
            first = await ask(web)
            if "shadow" in how:
                assert first["system_fingerprint"] == good.id
            else:
                assert first["error"]["code"] == "non_finite"
            await until(web, champion=good.id, canary=None, shadow=None)
            for _ in range(200):
                if (again := await ask(web)).get("system_fingerprint") == good.id:
                    break
            assert again["choices"][0]["text"]

    asyncio.run(asyncio.wait_for(main(), 60))
    event = registry.history("home")[-1]
    assert event.action == ("abort" if how else "fallback")
    assert event.evidence["check"] == "non_finite"
    assert event.evidence["errors"] == {"non_finite": 1}
    assert event.actor == "moetune"
