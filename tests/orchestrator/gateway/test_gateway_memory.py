"""A gateway that lives for months: of versions that came and went it keeps nothing."""

import asyncio
import gc
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import httpx
import pytest

from orchestrator.auth.rate_limit import RateLimiter
from orchestrator.config.rollout import GuardSpec
from orchestrator.config.serve import ServeSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices, HealthServices, RolloutServices
from orchestrator.registry.models import Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import abort, promote, rollback
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.rollout.guard import Guard
from orchestrator.rollout.window import Windows
from tests.orchestrator.rollout.traffic import NOW, failed, observed, rollout
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

ROOM = 3
TEXT: dict[str, Any] = {"prompt": "hello", "temperature": 0, "max_tokens": 2}
FEW = ServeSpec.model_validate(
    {
        "guard": {"window_requests": 2},
        "health": {"versions": ROOM, "window": 10, "windows": 1},
        "audit": {"on": False},
    }
)
"""Bounds that are soon reached."""
HOLDERS = (dict, list, tuple, set, frozenset, deque, partial, MethodType, str)


def kept(*roots: object) -> Counter[str]:
    """What these hold, by type: objects of ours, and what they and their texts lie in."""
    seen: dict[int, object] = {}
    left = list(roots)
    while left:
        one = left.pop()
        if id(one) not in seen and _ours(one):
            seen[id(one)] = one
            left += gc.get_referents(one)
    return Counter(type(one).__name__ for one in seen.values())


def _ours(one: object) -> bool:
    cache = type(one).__name__ == "_lru_cache_wrapper"
    return cache or isinstance(one, HOLDERS) or type(one).__module__.startswith("orchestrator.")


@dataclass(frozen=True)
class Shop:
    """A gateway, the registry that it follows, and ever new versions."""

    registry: Registry
    catalog: ModelCatalog
    services: GatewayServices
    parts: tuple[RolloutServices, HealthServices]
    web: httpx.AsyncClient
    adapter: Path

    def keeps(self) -> Counter[str]:
        return kept(self.registry, self.catalog, self.services, *self.parts)

    def new(self, number: int) -> Version:
        metrics = {"validation": {"loss": 1 / number}}
        return self.registry.register("study", number, self.adapter, metrics)

    async def promote(self, version: Version, **how: Any) -> None:
        await asyncio.to_thread(
            partial(
                promote,
                self.registry,
                version,
                "home",
                actor="test",
                metric="validation/loss",
                reason="test",
                force=True,
                stage=stage(**how),
            )
        )
        await self.catalog.refresh()

    async def come_and_go(self, number: int) -> None:
        """A version, its requests by both of its names, and its end."""
        version = await asyncio.to_thread(self.new, number)
        how: tuple[dict[str, Any], ...] = ({}, {"canary": "50%"}, {"shadow": True})
        await self.promote(version, **how[number % 3])
        for model in ("home", f"home@{version.id}")[: 1 if number % 3 == 2 else 2]:
            asked = {**TEXT, "model": model, "stream": number % 2 == 0}
            response = await self.web.post("/v1/completions", json=asked)
            assert response.is_success, response.text
        ends = abort if number % 3 else rollback
        await asyncio.to_thread(partial(ends, self.registry, "home", actor="test"))
        await self.catalog.refresh()


@pytest.fixture
def engine(tiny_model_dir: Path) -> Iterator[TextEngine]:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    limits = Limits(max_batch_tokens=64, cache_tokens=1024, max_adapters=ROOM)
    made = ContinuousEngine(base, limits)
    yield TextEngine(made, base.tokenizer)
    made.close()


@asynccontextmanager
async def opened(engine: TextEngine, folder: Path, adapter: Path) -> AsyncIterator[Shop]:
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    catalog = ModelCatalog(registry, "tiny-llama", engine.load, engine.unload, ROOM)
    health = HealthServices.of(registry, FEW, folder)
    rollouts = RolloutServices.of(registry, catalog, FEW.guard, health.monitor.drift)
    services = GatewayServices(
        limiter=RateLimiter(), observers=(rollouts.observe, health.observe), tasks=(rollouts.run,)
    )
    app = create_app(engine, catalog, services)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as web,
    ):
        shop = Shop(registry, catalog, services, (rollouts, health), web, adapter)
        await shop.promote(await asyncio.to_thread(shop.new, 1000))
        yield shop


async def looked_after(shop: Shop) -> None:
    """Until the controller has come by, who forgets."""
    await asyncio.sleep(2.2)


def test_what_is_kept_does_not_grow_with_the_versions_that_went(
    engine: TextEngine,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.rollout.catalog.EXACT", ROOM)
    monkeypatch.setattr("orchestrator.registry.artifacts.VERIFIED", ROOM)

    async def main() -> list[Counter[str]]:
        found = []
        async with opened(engine, tmp_path, make_adapter(31)) as shop:
            for number in range(1, 61):
                await shop.come_and_go(number)
                if number in (12, 60):
                    await looked_after(shop)
                    found.append(shop.keeps())
        return found

    few, many = asyncio.run(main())
    assert few["Judge"] == ROOM, "it looks where things are kept"
    assert (many - few).total() < 10, many - few


def test_a_guard_that_cannot_help_remembers_the_last_champion_only() -> None:
    spec = GuardSpec(fallback=())
    windows = Windows(spec)
    guard, sizes = Guard(spec, windows), []
    for version in "abcdef":
        observed(windows, (50, failed(version)))
        assert guard(rollout(version), NOW) is None
        windows.forget([])
        sizes.append(kept(guard).total())
    assert sizes == [sizes[0]] * 6
