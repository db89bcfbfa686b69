"""HEAD, and addresses that end with a slash: what clients and load balancers try."""

import asyncio
from pathlib import Path

import httpx
import pytest

from orchestrator.auth.keys import KeyRing, key_hash
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from tests.orchestrator.gateway.test_access import SECRET, Nowhere


def ask(tmp_path: Path, *asked: tuple[str, str], key: str | None = None) -> list[httpx.Response]:
    registry = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
    catalog = ModelCatalog(registry, "tiny-llama", Nowhere().load)
    app = create_app(
        Nowhere(), catalog, GatewayServices(KeyRing(key_hash(SECRET)) if key else KeyRing())
    )
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as web:
            return [await web.request(method, path) for method, path in asked]

    return asyncio.run(main())


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/models/tiny-llama", "/health", "/openapi.json", "/nothing"]
)
def test_head_answers_where_get_does(tmp_path: Path, path: str) -> None:
    get, head = ask(tmp_path, ("GET", path), ("HEAD", path))
    assert head.status_code == get.status_code
    assert head.content == b""
    for name in ("content-length", "content-type"):
        assert head.headers[name] == get.headers[name]


def test_head_opens_no_more_than_get(tmp_path: Path) -> None:
    asked = [("HEAD", "/v1/models"), ("HEAD", "/health"), ("HEAD", "/v1/completions")]
    wrong = [one.status_code for one in ask(tmp_path, *asked, key="wrong")]
    right = [one.status_code for one in ask(tmp_path, *asked, key=SECRET)]
    assert (wrong, right) == ([401, 200, 405], [200, 200, 405])


def test_models_with_nothing_behind_the_slash_are_listed(tmp_path: Path) -> None:
    listed, slash = ask(tmp_path, ("GET", "/v1/models"), ("GET", "/v1/models/"))
    assert slash.json() == listed.json()
    [refused] = ask(tmp_path, ("GET", "/v1/models/"), key="wrong")
    assert refused.status_code == 401
