"""A gateway over a real engine in this process, with the services it is given."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

OpenGateway = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[TextEngine]:
    """The tiny model, with room for an answer of 400 tokens."""
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    limits = Limits(max_batch_tokens=64, cache_tokens=2048, max_new_tokens=400, max_queued=8)
    engine = ContinuousEngine(base, limits)
    yield TextEngine(engine, base.tokenizer)
    engine.close()


@pytest.fixture
def open_gateway(engine: TextEngine, tmp_path: Path) -> OpenGateway:
    """open_gateway(services, key=None): a client of a running gateway whose registry is empty."""

    @asynccontextmanager
    async def open_(
        services: GatewayServices | None = None,
        key: str | None = None,
        registry: Registry | None = None,
    ) -> AsyncIterator[httpx.AsyncClient]:
        registry = registry or Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
        app = create_app(engine, ModelCatalog(registry, "tiny-llama", engine.load), services)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=headers, timeout=60
            ) as web,
        ):
            async with asyncio.timeout(30):
                while not (await web.get("/ready")).is_success:
                    await asyncio.sleep(0.02)
            yield web

    return open_
