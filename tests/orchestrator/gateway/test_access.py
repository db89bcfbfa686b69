"""Keys, scopes and hosts are asked for before a body is read, on every route that there is."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from orchestrator.auth import wrong_keys
from orchestrator.auth.keys import Caller, Key, KeyRing, key_hash
from orchestrator.auth.rate_limit import TooMany
from orchestrator.auth.wrong_keys import WrongKeys
from orchestrator.config.limits import LimitsSpec
from orchestrator.config.serve import ServeSpec
from orchestrator.gateway import page
from orchestrator.gateway.app import NO_KEY, create_app
from orchestrator.gateway.services import GatewayServices, HealthServices, RolloutServices
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from tests.orchestrator.backends import Nowhere

SECRET = "mt-0123456789abcdef"
KEYED = {"authorization": f"Bearer {SECRET}"}
LIMIT = 1000


@pytest.fixture
def make_app(tmp_path: Path) -> Callable[[GatewayServices], FastAPI]:
    """A gateway with all routes that an endpoint has."""

    def make(services: GatewayServices) -> FastAPI:
        registry, serve = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path), ServeSpec()
        catalog = ModelCatalog(registry, "tiny-llama", Nowhere().load)
        health = HealthServices.of(registry, serve, tmp_path)
        rollout = RolloutServices.of(registry, catalog, serve.guard, health.monitor.drift)
        routers = (*services.routers, rollout.router, health.router)
        limits = LimitsSpec(max_body_bytes=LIMIT)
        return create_app(Nowhere(), catalog, replace(services, routers=routers, limits=limits))

    return make


def ring(scopes: str = "infer") -> KeyRing:
    caller = Caller("k-1", frozenset(scopes.split(",")))  # type: ignore[arg-type]
    made = KeyRing(None, lambda: [Key(key_hash(SECRET), caller, "", datetime.now(UTC))])
    made.refresh()
    return made


class Answer:
    """An answer's status, and how much of the body was read before it."""

    def __init__(self) -> None:
        self.status, self.read, self.body = 0, 0, b""


def ask(app: FastAPI, method: str, path: str, size: int = 10**9, **headers: str) -> Answer:
    """Send a request with a body in pieces that ends only after `size` bytes."""
    answer = Answer()

    async def receive() -> Any:
        answer.read += 100
        return {"type": "http.request", "body": b" " * 100, "more_body": answer.read < size}

    async def send(message: Any) -> None:
        answer.status = message.get("status", answer.status)
        answer.body += message.get("body", b"")

    given = {"host": "localhost", "content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
    }

    async def main() -> None:
        async with asyncio.timeout(20):
            await app(scope, receive, send)

    asyncio.run(main())
    return answer


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, with something for its parameters."""
    found = [
        (method, (route.path or "").replace("{name}", "home").replace("{model:path}", "home"))
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
    ]
    assert len(found) > 20
    assert not [path for _, path in found if "{" in path]
    return found


def test_what_needs_no_key_is_known() -> None:
    assert {"/", "/health", "/ready", "/openapi.json"} | {
        f"/page/{name}" for name in page.FILES if name != "index.html"
    } == NO_KEY


def test_every_other_route_refuses_without_a_key_and_reads_nothing(
    make_app: Callable[[GatewayServices], FastAPI],
) -> None:
    hours = itertools.count(step=wrong_keys.FORGOTTEN_SECONDS + 1)  # no wrong key slows the next
    slow = WrongKeys(clock=lambda: next(hours))
    app = make_app(GatewayServices(ring(), wrong_keys=slow))
    for method, path in routes(app):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            answer = ask(app, method, path, **headers)
            if path in NO_KEY:
                assert answer.status in (200, 503), path  # not ready: nothing follows the registry
            else:
                assert (answer.status, answer.read) == (401, 0), (method, path)


def test_every_route_that_changes_something_wants_its_scope_first(
    make_app: Callable[[GatewayServices], FastAPI],
) -> None:
    asks, changes = (
        make_app(GatewayServices(ring("infer"))),
        make_app(GatewayServices(ring("promote"))),
    )
    for method, path in routes(asks):
        if method == "POST" and path.startswith("/moetune/"):
            assert (ask(asks, method, path, **KEYED).status) == 403
            assert ask(asks, method, path, **KEYED).read == 0
        elif path.startswith("/v1/"):
            assert (ask(changes, method, path, **KEYED).status) == 403
            assert ask(changes, method, path, **KEYED).read == 0


def test_every_route_refuses_a_body_above_the_limit(
    make_app: Callable[[GatewayServices], FastAPI],
) -> None:
    app = make_app(GatewayServices(ring("admin")))
    for method, path in routes(app):
        declared = ask(app, method, path, **KEYED, **{"content-length": str(LIMIT + 1)})
        assert (declared.status, declared.read) == (413, 0), (method, path)
        chunked = ask(app, method, path, **KEYED, **{"transfer-encoding": "chunked"})
        assert chunked.read <= LIMIT + 100, (method, path)
        if method == "POST":
            assert chunked.status == 413, path


@pytest.mark.parametrize("host", ["localhost/health?", "localhost/?", "a#", "/health?"])
def test_a_host_header_leads_to_no_other_route(
    make_app: Callable[[GatewayServices], FastAPI], host: str
) -> None:
    app = make_app(GatewayServices(ring()))
    for path in ("/moetune/v1/rollouts/home/rollback", "/v1/completions"):
        answer = ask(app, "POST", path, host=host)
        assert (answer.status, answer.read) == (401, 0)


def test_a_route_that_forgets_to_say_wants_some_key(
    make_app: Callable[[GatewayServices], FastAPI],
) -> None:
    class Whole(BaseModel):
        text: str

    router = APIRouter()

    @router.post("/forgotten")
    async def forgotten(body: Whole) -> None:
        raise AssertionError(body)

    app = make_app(GatewayServices(ring()))
    app.include_router(router, prefix="/new")
    answer = ask(app, "POST", "/new/forgotten")
    assert (answer.status, answer.read) == (401, 0)
    assert ask(app, "POST", "/new/forgotten", 100, **KEYED).status == 400  # no such body


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LocalHost:1", 200),
        ("[::1]:8000", 200),
        ("127.8.0.1", 200),
        ("chat.example:8443", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:80@127.0.0.1", 200),
        ("127.0.0.1@evil.example", 403),
        ("10.0.0.1", 403),
        ("[::1", 403),
        ("localhost.evil.example:8000", 403),
    ],
)
def test_without_keys_only_our_own_names_are_taken(
    make_app: Callable[[GatewayServices], FastAPI], host: str, status: int
) -> None:
    app = make_app(GatewayServices(allowed_hosts=("chat.example",)))
    for path in ("/health", "/v1/models", "/"):
        assert ask(app, "GET", path, host=host).status == status
    refused = ask(app, "POST", "/v1/completions", 100, host=host)
    assert (refused.status == 403, refused.read == 0) == (status == 403, status == 403)
    assert (
        ask(make_app(GatewayServices(ring())), "GET", "/v1/models", host=host, **KEYED).status
        == 200
    )


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://app.example", 200),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
def test_without_keys_other_sites_pages_may_call_only_where_they_are_named(
    make_app: Callable[[GatewayServices], FastAPI], origin: str, status: int
) -> None:
    app = make_app(GatewayServices(cors_origins=("https://app.example",)))
    assert ask(app, "GET", "/v1/models", origin=origin).status == status
    assert (
        ask(make_app(GatewayServices(ring())), "GET", "/v1/models", origin=origin, **KEYED).status
        == 200
    )


def test_wrong_keys_are_counted_and_told_and_no_key_is(
    make_app: Callable[[GatewayServices], FastAPI],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wrong_keys, "FIRST_SECONDS", 0.001)
    counted: list[None] = []
    app = make_app(GatewayServices(ring(), wrong_keys=WrongKeys(lambda: counted.append(None))))
    with caplog.at_level(logging.WARNING):
        assert ask(app, "GET", "/v1/models").status == 401
        assert ask(app, "GET", "/v1/models", **KEYED).status == 200
        assert not counted
        for number in range(5):
            key = {"authorization": f"Bearer secret-{number}"}
            assert ask(app, "GET", "/v1/models", **key).status == 401
    assert len(counted) == 5
    lines = [line for line in caplog.messages if "wrong key" in line]
    assert len(lines) == 3  # the first, the second, the fourth
    assert all("127.0.0.1" in line for line in lines)
    assert "secret" not in caplog.text


def test_who_sends_wrong_keys_waits_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_keys, "ADDRESSES", 3)
    waits: list[float] = []

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        if seconds > 1:
            await asyncio.Event().wait()

    async def main() -> None:
        now = 0.0
        known = WrongKeys(clock=lambda: now)
        for _ in range(7):
            await known("a")
        assert waits == [0.1, 0.2, 0.4, 0.8]
        await known("b")
        assert len(waits) == 4
        held = [asyncio.create_task(known("a")) for _ in range(wrong_keys.WAITING)]
        await real(0)
        with pytest.raises(TooMany) as caught:
            await known("a")
        assert (caught.value.status, caught.value.retry_after) == (429, 5)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        now = wrong_keys.FORGOTTEN_SECONDS + 1
        waits.clear()
        await known("a")
        for address in "cdef":
            await known(address)
        assert not waits
        assert len(known._addresses) == 3

    real = asyncio.sleep
    monkeypatch.setattr(wrong_keys.asyncio, "sleep", slept)
    asyncio.run(main())
