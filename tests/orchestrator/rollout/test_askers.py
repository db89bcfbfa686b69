"""Whoever only asks decides nothing: a real engine behind a gateway, and what the log says then."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.config.limits import LimitsSpec
from orchestrator.config.rollout import GuardSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices, RolloutServices
from orchestrator.registry.models import Event, Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.rollout.traffic import Served, TrafficSplit
from orchestrator.telemetry.request_record import RequestRecord
from tests.orchestrator.gateway.test_gateway import streaming
from tests.tiny import write_adapter
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits
from workers.engine.text_engine import TextEngine
from workers.injection.inject import row_map
from workers.models.base import load_base

QUICK = GuardSpec(min_requests=4, plan_requests=2)
TEXT: dict[str, Any] = {"model": "home", "prompt": "hello", "temperature": 0, "max_tokens": 4}
ENDLESS = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[TextEngine]:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    made = ContinuousEngine(base, Limits(cache_tokens=1024, max_new_tokens=400))
    yield TextEngine(made, base.tokenizer)
    made.close()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)


@pytest.fixture
def versions(registry: Registry, tiny_model_dir: Path, tmp_path: Path) -> list[Version]:
    folders = [write_adapter(tiny_model_dir, tmp_path / str(n), 70 + n) for n in range(3)]
    return [registry.register("s", trial, folder, {}) for trial, folder in enumerate(folders)]


def put(registry: Registry, version: Version, **how: Any) -> None:
    forced: dict[str, Any] = {"actor": "test", "reason": "test", "force": True}
    promote(registry, version, "home", metric="loss", stage=stage(**how), **forced)


@dataclass(frozen=True)
class Shop:
    """A gateway whose log is looked after only when a test says so."""

    web: httpx.AsyncClient
    catalog: ModelCatalog
    rollouts: RolloutServices
    heard: list[RequestRecord]

    async def ask(self, **fields: Any) -> httpx.Response:
        return await self.web.post("/v1/completions", json={**TEXT, **fields})

    def decided(self) -> list[Event]:
        return self.rollouts.controller.ask(self.rollouts.states())


@asynccontextmanager
async def shop(engine: TextEngine, registry: Registry, **limits: Any) -> AsyncIterator[Shop]:
    heard: list[RequestRecord] = []
    catalog = ModelCatalog(registry, "tiny-llama", engine.load)
    rollouts = RolloutServices.of(registry, catalog, QUICK)
    services = GatewayServices(
        observers=(rollouts.observe, heard.append), limits=LimitsSpec(**limits)
    )
    app = create_app(engine, catalog, services)
    transport = httpx.ASGITransport(app)
    async with (
        asyncio.timeout(120),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as web,
    ):
        while not (await web.get("/ready")).is_success:
            await asyncio.sleep(0.02)
        yield Shop(web, catalog, rollouts, heard)


def test_a_schema_that_never_ends_ends_no_champion(
    engine: TextEngine, registry: Registry, versions: list[Version]
) -> None:
    put(registry, versions[0])
    put(registry, versions[1])

    async def main() -> None:
        async with shop(engine, registry) as home:
            for stream in (False, True) * 3:
                await home.ask(response_format=SCHEMA, max_tokens=40, stream=stream)
            codes = {(one.status, one.error) for one in home.heard}
            assert codes == {(400, "invalid_schema")}
            assert {one.version for one in home.heard} == {versions[1].id}
            assert home.decided() == []

    asyncio.run(main())
    assert registry.champion("home") == versions[1]


def test_answers_too_long_for_their_time_end_no_champion(
    engine: TextEngine, registry: Registry, versions: list[Version]
) -> None:
    put(registry, versions[0])
    put(registry, versions[1])

    async def main() -> None:
        async with shop(engine, registry, request_seconds=0.3) as home:
            asking = (home.ask(max_tokens=400, n=4, temperature=1) for _ in range(6))
            await asyncio.gather(*asking)
            assert {(one.status, one.error) for one in home.heard} == {(504, "timeout")}
            assert home.decided() == []

    asyncio.run(main())


def test_pins_lead_no_canary_on_and_end_none(
    engine: TextEngine, registry: Registry, versions: list[Version]
) -> None:
    champion, canary, _ = versions
    put(registry, champion)
    put(registry, canary, plan="5%,100% every 1s")
    pinned = f"home@{canary.id}"
    own, others = users(canary, 0.05)

    async def main() -> None:
        async with shop(engine, registry) as home:
            await asyncio.sleep(1)  # the step is due
            for user in others[:4]:
                assert (await home.ask(model=pinned, user=user)).is_success
                await home.ask(model=pinned, response_format=SCHEMA, user=user)
                await home.ask(user=user)
            assert {one.role for one in home.heard} == {"pinned", "served"}
            assert home.decided() == []
            for user in own[:2]:
                assert (await home.ask(user=user)).json()["system_fingerprint"] == canary.id
            assert [event.action for event in home.decided()] == ["promote"]

    asyncio.run(main())


def users(canary: Version, share: float) -> tuple[list[str], list[str]]:
    """Those that meet the canary, and those that do not."""
    served = Served(f"home@{canary.id}", AdapterRef(canary.id, ""), "home")
    split = TrafficSplit(Served("tiny-llama", None, "home"), served, share)
    names = [f"user {number}" for number in range(400)]
    met = {name for name in names if split.route(name).role == "canary"}
    return [n for n in names if n in met], [n for n in names if n not in met]


@pytest.mark.parametrize("pause", [0.0, 0.06], ids=["as fast", "slow"])
def test_a_canary_ends_by_what_its_passes_take_and_not_by_its_askers(
    engine: TextEngine, registry: Registry, versions: list[Version], pause: float
) -> None:
    """Its users ask for more, several at once, and read slowly. A pass that it is in may pause."""
    champion, canary, _ = versions
    put(registry, champion)
    put(registry, canary, canary="50%")
    own, others = users(canary, 0.5)
    model = engine.engine._model  # type: ignore[attr-defined]

    def pauses(*_: Any) -> None:
        if canary.id in row_map(model)._current.names:
            time.sleep(pause)

    async def main() -> list[Event]:
        async with shop(engine, registry) as home:
            while home.catalog._splits["home"].canary is None:
                await asyncio.sleep(0.02)
            for at in range(12):
                await home.ask(user=others[at], prompt=f"{at} hello", max_tokens=6)
            for at in range(12):
                asked = {"user": own[at], "prompt": f"{at} hello"}
                async with streaming(home.web, {**TEXT, **asked, "max_tokens": 6}) as running:
                    await running
                await home.ask(**asked, max_tokens=8, n=3, temperature=1)
            return home.decided()

    hook = model.get_input_embeddings().register_forward_pre_hook(pauses)
    try:
        events = asyncio.run(main())
    finally:
        hook.remove()
    told = [(event.action, event.version, event.evidence["check"]) for event in events]
    assert told == ([("abort", canary.id, "latency")] if pause else [])


def test_a_client_that_leaves_says_nothing_of_a_shadow(
    engine: TextEngine, registry: Registry, versions: list[Version]
) -> None:
    put(registry, versions[0])
    put(registry, versions[1], shadow=True)

    async def main() -> None:
        async with shop(engine, registry) as home:
            while (state := home.catalog.states["home"]).shadow is None:
                await asyncio.sleep(0.02)
            async with streaming(home.web, {**TEXT, "max_tokens": 300}):
                pass  # and away
            while len(home.heard) < 2:
                await asyncio.sleep(0.02)
            assert len({one.user for one in home.heard}) == 1
            told = {one.role: (one.error, one.agreement) for one in home.heard}
            assert told == {"served": ("client_closed_request", None), "shadow": (None, None)}
            assert home.rollouts.comparisons.figures(state, datetime.now(UTC)) is None

    asyncio.run(main())


def test_of_several_answers_the_first_tells_the_time(
    engine: TextEngine, registry: Registry, versions: list[Version]
) -> None:
    put(registry, versions[0])

    async def main() -> list[RequestRecord]:
        async with shop(engine, registry) as home:
            await home.ask(n=5, max_tokens=6, temperature=1, seed=1, user="ann")
            await home.ask(max_tokens=6, temperature=1, seed=1, user="ann")
            return home.heard

    many, one = asyncio.run(main())
    assert many.timing is not None
    assert one.timing is not None
    assert many.timing.answer.tokens == one.timing.answer.tokens <= 5
    assert many.completion_tokens > one.completion_tokens
    assert many.user == one.user != ""
    assert "ann" not in many.user
