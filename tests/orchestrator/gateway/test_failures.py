"""What fails here is not the request's fault: 5xx, no word of our folders, all of it in the log."""

import asyncio
import logging
import re
import resource
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.auth.keys import KeyRing, key_hash
from orchestrator.config.rollout import GuardSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices, RolloutServices
from orchestrator.registry.models import Version
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

KEY = "0123456789abcdef-test"
TEXT = {"prompt": "hello", "temperature": 0, "max_tokens": 8}
HOME = "/moetune/v1/rollouts/home"
Ask = Callable[[httpx.AsyncClient], Awaitable[None]]


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[TextEngine]:
    """Room for one adapter: another one's request evicts it."""
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    made = ContinuousEngine(base, Limits(max_batch_tokens=64, cache_tokens=256, max_adapters=1))
    yield TextEngine(made, base.tokenizer)
    made.close()


class Shop:
    """A gateway and the registry behind it, two versions promoted one after the other."""

    def __init__(self, engine: TextEngine, folder: Path, adapters: list[Path]) -> None:
        self.folder = folder
        self.registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
        self.versions = [
            self.registry.register("s", number, adapter, {"loss": 1.0})
            for number, adapter in enumerate(adapters)
        ]
        self.catalog = ModelCatalog(self.registry, "tiny-llama", engine.load, engine.unload, 1)
        rollouts = RolloutServices.of(self.registry, self.catalog, GuardSpec())
        services = GatewayServices(KeyRing(key_hash(KEY)), routers=(rollouts.router,))
        self.app = create_app(engine, self.catalog, services)

    def promote(self, version: Version) -> None:
        promote(self.registry, version, "home", actor="t", metric="loss", reason="t", force=True)

    @asynccontextmanager
    async def client(self) -> Any:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers, timeout=60
        ) as web:
            yield web

    def run(self, ask: Ask) -> None:
        async def main() -> None:
            async with asyncio.timeout(120), self.client() as web:
                await self.catalog.refresh()
                await ask(web)

        asyncio.run(main())


@pytest.fixture
def shop(engine: TextEngine, make_adapter: Callable[..., Path], tmp_path: Path) -> Shop:
    made = Shop(engine, tmp_path, [make_adapter(91), make_adapter(92)])
    for version in made.versions:
        made.promote(version)
    return made


@pytest.fixture
def is_ours(shop: Shop, caplog: pytest.LogCaptureFixture) -> Callable[..., None]:
    """is_ours(answer, "said in the log"): an error of the server, its cause told only there."""

    def check(answer: httpx.Response, cause: str, status: int = 500) -> None:
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["type"] == "server_error"
        assert not re.search(r"/|sqlite|moetune\.db|digest", error["message"]), error
        assert str(shop.folder) not in answer.text
        assert cause in caplog.text
        if status == 500:
            [found] = re.findall(r"request ([0-9a-f]+) failed here", error["message"])
            assert any(f"request {found} failed" in line for line in caplog.messages)

    caplog.set_level(logging.INFO)
    return check


def writable(version: Version) -> Path:
    for path in version.folder.iterdir():
        path.chmod(0o644)
    return version.folder


def test_an_evicted_version_whose_files_are_others_answers_nothing(
    shop: Shop, is_ours: Callable[..., None], make_adapter: Callable[..., Path]
) -> None:
    """They are sound in themselves: another adapter with a manifest that fits it."""
    old, new = shop.versions
    other = shop.registry.register("s", 3, make_adapter(93), {})

    async def text(web: httpx.AsyncClient, model: str) -> httpx.Response:
        return await web.post("/v1/completions", json={**TEXT, "model": model})

    async def ask(web: httpx.AsyncClient) -> None:
        known = (await text(web, f"home@{old.id}")).json()["choices"]
        assert (await text(web, f"home@{new.id}")).is_success  # the old one is evicted
        aside = shop.folder / "aside"
        shutil.copytree(old.folder, aside)
        shutil.copytree(other.folder, writable(old), dirs_exist_ok=True)
        is_ours(await text(web, f"home@{old.id}"), "was altered")
        streamed = {**TEXT, "model": f"home@{old.id}", "stream": True}
        is_ours(await web.post("/v1/completions", json=streamed), "was altered")
        assert (await text(web, "home")).is_success
        shutil.rmtree(old.folder)
        is_ours(await text(web, f"home@{old.id}"), "there is no such adapter folder")
        aside.rename(old.folder)
        assert (await text(web, f"home@{old.id}")).json()["choices"] == known

    shop.run(ask)


def test_a_version_that_is_lost_is_not_the_askers_fault(
    shop: Shop, is_ours: Callable[..., None]
) -> None:
    lost = shop.versions[0]

    async def ask(web: httpx.AsyncClient) -> None:
        shutil.rmtree(lost.folder)
        for answer in (
            await web.post("/v1/completions", json={**TEXT, "model": f"home@{lost.id}"}),
            await web.get(f"/v1/models/home@{lost.id}"),
            await web.post(f"{HOME}/promote", json={"version": lost.id}),
            await web.post(f"{HOME}/rollback", json={}),
        ):
            is_ours(answer, "is gone")
        await asyncio.sleep(0.1)
        unknown = await web.get("/v1/models/home@abcdef")
        assert unknown.status_code == 404  # that is the asker's

    shop.run(ask)


def test_a_champion_that_cannot_be_loaded_is_refused_without_a_path(shop: Shop) -> None:
    (writable(shop.versions[1]) / "adapter_model.safetensors").write_bytes(b"damaged")

    async def ask(web: httpx.AsyncClient) -> None:
        refused = (await web.get(HOME)).json()["refused"]
        assert refused.keys() == {shop.versions[1].id}
        assert "log has more" in refused[shop.versions[1].id]
        assert str(shop.folder) not in str(refused)

    shop.run(ask)


def test_a_database_that_fails_is_not_the_askers_fault(
    shop: Shop, is_ours: Callable[..., None]
) -> None:
    file = shop.folder / "moetune.db"

    async def changes(web: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await web.get(f"{HOME}/history"),
            await web.post(f"{HOME}/promote", json={"version": shop.versions[0].id}),
            await web.post(f"{HOME}/rollback", json={}),
            await web.post(f"{HOME}/abort", json={}),
            await web.get(f"/v1/models/home@{shop.versions[0].id}"),
        ]

    async def ask(web: httpx.AsyncClient) -> None:
        aside = file.rename(shop.folder / "aside.db")
        for answer in await changes(web):
            is_ours(answer, "No such file or directory")
        assert not file.exists()
        file.write_bytes(b"this is no database, but it is long enough to be looked at" * 20)
        for answer in await changes(web):
            is_ours(answer, "file is not a database")
        file.unlink()
        sqlite3.connect(file).close()
        file.touch()  # replaced by an empty one
        for answer in await changes(web):
            is_ours(answer, "no such table")
        file.unlink()
        aside.rename(file)
        assert (await web.get(f"{HOME}/history")).is_success
        await shop.catalog.poll()
        aside = file.rename(shop.folder / "aside.db")
        await shop.catalog.poll()  # it is known by now that the registry cannot be read
        unread = await web.get(f"/v1/models/home@{shop.versions[0].id}")
        is_ours(unread, "the registry cannot be read", 503)
        assert (await web.post("/v1/completions", json={**TEXT, "model": "home"})).is_success

    shop.run(ask)


def test_a_full_disk_is_not_the_askers_fault(shop: Shop, is_ours: Callable[..., None]) -> None:
    async def ask(web: httpx.AsyncClient) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file of this process grows
        try:
            answer = await web.post(f"{HOME}/rollback", json={})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        is_ours(answer, "disk")
        assert (await web.post(f"{HOME}/rollback", json={})).is_success

    shop.run(ask)


def test_what_is_the_requests_fault_is_told(shop: Shop) -> None:
    async def ask(web: httpx.AsyncClient) -> None:
        for path, body, status, said in (
            (f"{HOME}/promote", {"version": "xyz"}, 400, "4 to 64 hex digits"),
            (f"{HOME}/promote", {"version": "abcdef"}, 400, "there is none in the registry"),
            (f"{HOME}/promote", {"version": shop.versions[0].id}, 409, "is not promoted"),
            (f"{HOME}/promote", {"version": "abcdef", "canary": "x"}, 400, "write a percentage"),
            (f"{HOME}/abort", {}, 400, "no canary and no shadow"),
            ("/moetune/v1/rollouts/-x/abort", {}, 400, "letters, digits"),
            ("/v1/completions", {**TEXT, "model": "nobody"}, 404, "nothing was promoted"),
            ("/v1/completions", {**TEXT, "model": "home@zz"}, 404, "hex digits"),
        ):
            answer = await web.post(path, json=body)
            assert answer.status_code == status, (path, body, answer.text)
            assert said in answer.json()["error"]["message"]

    shop.run(ask)


def test_an_engine_that_fails_halfway_tells_a_stream_no_more_than_that(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = shop.app.state.gateway._backend.generate

    async def failing(request: Any) -> Any:
        async for chunk in generate(request):
            yield chunk
            if chunk.tokens:
                raise RuntimeError("/srv/secret is no folder")

    async def ask(web: httpx.AsyncClient) -> None:
        monkeypatch.setattr(shop.app.state.gateway._backend, "generate", failing)
        asked = {**TEXT, "model": "tiny-llama", "stream": True}
        answer = await web.post("/v1/completions", json=asked)
        assert "failed here" in answer.text
        assert "secret" not in answer.text
        [id] = set(re.findall(r"cmpl-[0-9a-f]{24}", answer.text))
        assert f"request {id} failed" in caplog.text
        assert "/srv/secret is no folder" in caplog.text

    shop.run(ask)
