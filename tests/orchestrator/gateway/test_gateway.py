"""The gateway over a real engine: keys, limits, deadlines, draining, what observers hear."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends

from orchestrator.auth.key_store import KeyStore
from orchestrator.auth.keys import Caller, Key, KeyRing, key_hash, wants
from orchestrator.auth.rate_limit import RateLimiter
from orchestrator.auth.sync import KeySync
from orchestrator.config.limits import Allowance, LimitsSpec
from orchestrator.gateway.services import GatewayServices
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.telemetry.request_record import RequestRecord
from tests.orchestrator.gateways import OpenGateway
from workers.engine.text_engine import TextEngine

TEXT: dict[str, Any] = {
    "model": "tiny-llama",
    "prompt": "hello",
    "temperature": 0,
    "max_tokens": 8,
}
LONG = {**TEXT, "max_tokens": 400}
SECRET = "mt-0123456789abcdef"
NAMED = "access-control-allow-origin"
Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def key(scopes: str = "infer", **fields: Any) -> Key:
    caller = Caller("k-1", frozenset(scopes.split(",")), **fields)  # type: ignore[arg-type]
    return Key(key_hash(SECRET), caller, "", datetime.now(UTC))


def within(
    open_gateway: OpenGateway, services: GatewayServices, ask: Ask, given: str | None = None
) -> Any:
    """What `ask` returns, with a client of a gateway with these services."""

    async def main() -> Any:
        async with asyncio.timeout(60), open_gateway(services, given) as web:
            return await ask(web)

    return asyncio.run(main())


async def post(web: httpx.AsyncClient, body: Any = TEXT) -> httpx.Response:
    return await web.post("/v1/completions", json=body)


@asynccontextmanager
async def streaming(web: httpx.AsyncClient, body: Any = LONG) -> AsyncIterator[Any]:
    """A stream that has begun. (httpx's ASGI transport would wait for its end.)"""
    app: Any = web._transport.app  # type: ignore[attr-defined]
    events: asyncio.Queue[bytes] = asyncio.Queue()
    left = asyncio.Event()
    asked = [{"type": "http.request", "body": json.dumps({**body, "stream": True}).encode()}]

    async def receive() -> Any:
        if asked:
            return asked.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await events.put(message.get("body", b""))

    headers = [(b"content-type", b"application/json")]
    if given := web.headers.get("authorization"):
        headers.append((b"authorization", given.encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    running = asyncio.create_task(app(scope, receive, send))
    await events.get()
    await events.get()
    try:
        yield running
    finally:
        left.set()
        await running


def test_a_key_made_or_revoked_counts_within_a_second_or_so(
    open_gateway: OpenGateway, tmp_path: Path
) -> None:
    store, key_sync = (
        KeyStore(f"sqlite:///{tmp_path}/moetune.db"),
        KeySync(f"sqlite:///{tmp_path}/moetune.db"),
    )
    ring, limiter = KeyRing(None, key_sync.read), RateLimiter()
    services = GatewayServices(ring, limiter, tasks=(lambda: key_sync.run(ring, limiter),))

    async def until(web: httpx.AsyncClient, status: int) -> None:
        while (await web.get("/v1/models")).status_code != status:
            await asyncio.sleep(0.05)

    async def ask(web: httpx.AsyncClient) -> None:
        await until(web, 200)  # open: no key was ever made
        store.add(key(quota=Allowance(20, "day")))
        web.headers["authorization"] = "Bearer wrong"
        await until(web, 401)
        web.headers["authorization"] = f"Bearer {SECRET}"
        assert (await post(web)).is_success
        assert (await post(web)).status_code == 429
        while not store.usage():
            await asyncio.sleep(0.05)
        assert sum(store.usage().values()) == len("hello") + 8
        store.revoke("k-1", datetime.now(UTC))
        await until(web, 401)

    within(open_gateway, services, ask)


def test_what_a_key_used_is_saved_when_the_gateway_goes(
    open_gateway: OpenGateway, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/moetune.db"
    store, key_sync = KeyStore(url), KeySync(url)
    store.add(key(quota=Allowance(10**6, "day")))
    ring, limiter = KeyRing(None, key_sync.read), RateLimiter()
    services = GatewayServices(ring, limiter, tasks=(lambda: key_sync.run(ring, limiter),))

    async def ask(web: httpx.AsyncClient) -> int:
        return sum([(await post(web)).json()["usage"]["total_tokens"] for _ in range(3)])

    used = within(open_gateway, services, ask, SECRET)
    assert sum(store.usage().values()) == used == 3 * (len("hello") + 8)


def test_routes_of_others_say_which_keys_they_take(open_gateway: OpenGateway) -> None:
    router = APIRouter()

    @router.post("/promote")
    async def promote(caller: Annotated[Caller, Depends(wants("promote"))]) -> dict[str, str]:
        return {"by": caller.id}

    @router.get("/state")
    async def state() -> str:
        return "well"

    async def ask(web: httpx.AsyncClient) -> tuple[int, int, Any]:
        read, changed = await web.get("/moetune/v1/state"), await web.post("/moetune/v1/promote")
        return read.status_code, changed.status_code, changed.json()

    services = GatewayServices(KeyRing(None, lambda: [key("promote")]), routers=(router,))
    services.keys.refresh()
    assert within(open_gateway, services, ask, SECRET) == (200, 200, {"by": "k-1"})
    assert within(open_gateway, services, ask, "wrong")[:2] == (401, 401)
    assert within(open_gateway, replace(services, keys=KeyRing()), ask)[:2] == (200, 401)


def test_rates_and_quotas_are_429_until_the_time_they_name(open_gateway: OpenGateway) -> None:
    keys = KeyRing(None, lambda: [key(rate=Allowance(2, "s"), quota=Allowance(30, "h"))])
    keys.refresh()

    async def ask(web: httpx.AsyncClient) -> None:
        statuses = [(await post(web)).status_code for _ in range(3)]
        assert statuses[:2] == [200, 200]
        last = await post(web)
        if statuses[2] == 429:  # on a slow machine a second has gone by
            await asyncio.sleep(int((await post(web)).headers["retry-after"]))
            last = await post(web)
        assert last.status_code in (200, 429)
        while (last := await post(web)).json()["error"]["code"] != "insufficient_quota":
            await asyncio.sleep(int(last.headers["retry-after"]))
        assert 1 <= int(last.headers["retry-after"]) <= 3600

    within(open_gateway, GatewayServices(keys), ask, SECRET)


def test_a_body_is_limited_and_must_say_that_it_is_json(open_gateway: OpenGateway) -> None:
    async def ask(web: httpx.AsyncClient) -> list[int]:
        text = json.dumps(TEXT)
        kinds = ("application/json; charset=utf-8", "text/plain", "", "application/jsonp")
        answers = [
            await web.post("/v1/completions", content=text, headers={"content-type": kind})
            for kind in kinds
        ]
        answers.append(await web.post("/v1/completions", content=text))
        answers.append(await post(web, {**TEXT, "prompt": "x" * 200}))
        return [answer.status_code for answer in answers]

    services = GatewayServices(limits=LimitsSpec(max_body_bytes=200))
    assert within(open_gateway, services, ask) == [200, 415, 415, 415, 415, 413]


def test_what_takes_too_long_is_cut_off_and_frees_its_place(
    open_gateway: OpenGateway, engine: TextEngine
) -> None:
    heard: list[RequestRecord] = []

    async def ask(web: httpx.AsyncClient) -> None:
        late = await post(web, LONG)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "timeout"
        async with streaming(web) as running:
            await running
        assert (await post(web, {**TEXT, "max_tokens": 1})).is_success

    services = GatewayServices(limits=LimitsSpec(request_seconds=0.2), observers=(heard.append,))
    within(open_gateway, services, ask)
    assert [(one.status, one.error) for one in heard] == [
        (504, "timeout"),
        (504, "timeout"),
        (200, None),
    ]


def test_observers_hear_once_of_every_request_that_ended(open_gateway: OpenGateway) -> None:
    heard: list[RequestRecord] = []

    def broken(_: RequestRecord) -> None:
        raise RuntimeError("an observer's own trouble")

    async def ask(web: httpx.AsyncClient) -> None:
        whole = (await post(web)).json()
        await post(web, {**TEXT, "stream": True})
        await post(web, {**TEXT, "max_tokens": 10**6})
        await post(web, {**TEXT, "model": "nobody"})
        await post(web, {})
        async with streaming(web):
            pass  # and away
        first = heard[0]
        assert first.request == whole["id"]
        assert first.completion_tokens == whole["usage"]["completion_tokens"]
        assert 0 < (first.first_token_seconds or 0) <= first.seconds
        assert (first.prompt, first.answer) == ("hello", whole["choices"][0]["text"])

    services = GatewayServices(observers=(broken, heard.append), texts=True)
    within(open_gateway, services, ask)
    assert [(one.status, one.version) for one in heard] == [
        (200, "base"),
        (200, "base"),
        (400, "base"),
        (404, "-"),
        (400, "-"),
        (499, "base"),
    ]
    assert {one.caller for one in heard} == {"anonymous"}
    assert heard[1].answer == heard[0].answer


def test_texts_are_not_told_unasked(open_gateway: OpenGateway) -> None:
    heard: list[RequestRecord] = []
    within(open_gateway, GatewayServices(observers=(heard.append,)), post)
    assert (heard[0].prompt, heard[0].answer) == (None, None)


def test_draining_ends_what_runs_and_lets_nothing_more_in(open_gateway: OpenGateway) -> None:
    heard: list[RequestRecord] = []

    async def ask(web: httpx.AsyncClient) -> None:
        app: Any = web._transport.app  # type: ignore[attr-defined]
        asked = asyncio.create_task(post(web, LONG))
        while not app.state.gateway.in_flight:
            await asyncio.sleep(0.01)
        drained = asyncio.create_task(app.state.gateway.drain())
        await asyncio.sleep(0)
        assert not (await web.get("/ready")).is_success
        assert (await web.get("/health")).is_success
        refused = await post(web)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "closing")
        assert refused.headers["retry-after"]
        assert not drained.done()
        await drained
        assert (await asked).json()["usage"]["completion_tokens"] == 400

    within(open_gateway, GatewayServices(observers=(heard.append,)), ask)
    assert sorted(one.status for one in heard) == [200, 503]


def test_other_sites_may_call_only_where_they_are_named(open_gateway: OpenGateway) -> None:
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-stainless-os, x-any",
        "access-control-request-private-network": "true",
    }

    async def ask(web: httpx.AsyncClient) -> list[str | None]:
        before = await web.options("/v1/completions", headers=asked)
        foreign = await web.options("/v1/completions", headers={**asked, "origin": "https://x.y"})
        assert before.is_success is (NAMED in before.headers)
        answers = (before, foreign, await web.get("/health", headers=asked))
        return [answer.headers.get(NAMED) for answer in answers]

    assert within(open_gateway, GatewayServices(), ask) == [None, None, None]
    named = within(open_gateway, GatewayServices(cors_origins=("https://app.example",)), ask)
    assert named == ["https://app.example", None, "https://app.example"]


@pytest.mark.parametrize("fields", [{"rate": "often"}, {"request_seconds": 0}, {"cors": 1}])
def test_limits_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        LimitsSpec(**fields)


def test_a_shadow_answers_beside_is_compared_and_never_returned(
    open_gateway: OpenGateway, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
    champion, shadow = (registry.register("s", n, make_adapter(70 + n), {}) for n in (1, 2))
    becomes = partial(promote, registry, to="home", actor="t", metric="m", reason="t", force=True)
    becomes(champion)
    becomes(shadow, stage=stage(None, None, True))
    heard: list[RequestRecord] = []
    body = {**TEXT, "model": "home", "max_tokens": 24}

    async def ask() -> None:
        services = GatewayServices(observers=(heard.append,), texts=True)
        async with asyncio.timeout(60), open_gateway(services, registry=registry) as web:
            replies = [(await post(web, body)).json() for _ in range(2)]
            await post(web, {**body, "n": 2})  # several answers are not compared
            while len(heard) < 5:
                await asyncio.sleep(0.02)
            assert {reply["system_fingerprint"] for reply in replies} == {champion.id}

    asyncio.run(ask())
    shadows = [one for one in heard if one.role == "shadow"]
    served = [one for one in heard if one.role == "served"]
    assert [one.version for one in served] == [champion.id] * 3
    assert [one.version for one in shadows] == [shadow.id] * 2
    assert {one.request for one in shadows} == {one.request for one in served[:2]}
    assert served[0].answer != shadows[0].answer
    assert all(one.agreement is not None and one.agreement < 1 for one in shadows)
