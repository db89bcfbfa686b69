"""Quotas and rates over a real engine: what is set aside, what is charged, and what counts."""

import asyncio
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from orchestrator.auth.key_store import KeyStore
from orchestrator.auth.keys import KeyRing
from orchestrator.auth.rate_limit import RateLimiter, Spent, Usage, UsageKey
from orchestrator.auth.sync import KeySync
from orchestrator.config.limits import Allowance, LimitsSpec
from orchestrator.gateway.body import parse
from orchestrator.gateway.services import GatewayServices
from orchestrator.openai.schema import ChatBody, CompletionBase, CompletionBody
from tests.orchestrator.gateway.test_gateway import LONG, SECRET, TEXT, key, post, streaming, within
from tests.orchestrator.gateways import OpenGateway
from workers.engine.text_engine import TextEngine

COST = len("hello") + 8


def services_of(**allowed: Any) -> GatewayServices:
    keys = KeyRing(None, lambda: [key("infer,promote", **allowed)])
    keys.refresh()
    return GatewayServices(keys, max_new_tokens=400)


def used(services: GatewayServices) -> Spent:
    return Spent(sum(services.limiter._used.values()), sum(services.limiter._reserved.values()))


def test_twenty_at_once_take_no_more_than_the_quota(open_gateway: OpenGateway) -> None:
    services = services_of(quota=Allowance(3 * COST + 8, "day"))

    async def ask(web: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(post(web) for _ in range(20)))

    answers = within(open_gateway, services, ask, SECRET)
    taken = [one.json()["usage"]["total_tokens"] for one in answers if one.is_success]
    assert 1 <= len(taken) <= 3
    assert used(services) == Spent(sum(taken), 0)
    refused = [one for one in answers if not one.is_success]
    assert {one.status_code for one in refused} == {429}
    assert {one.json()["error"]["code"] for one in refused} == {"insufficient_quota"}
    assert all(int(one.headers["retry-after"]) >= 1 for one in refused)


def test_each_answer_of_one_request_is_set_aside_and_counts(open_gateway: OpenGateway) -> None:
    async def ask(web: httpx.AsyncClient) -> list[Any]:
        several = await post(web, {**TEXT, "n": 3})
        return [several.status_code, (await post(web, {**TEXT, "n": 2})).status_code]

    services = services_of(quota=Allowance(5 + 3 * 8 - 1, "day"))
    assert within(open_gateway, services, ask, SECRET) == [400, 200]
    services = services_of(quota=Allowance(5 + 3 * 8, "day"))
    assert within(open_gateway, services, ask, SECRET) == [200, 429]
    assert used(services) == Spent(5 + 3 * 8, 0)
    services = services_of(rate=Allowance(4, "h"))
    assert within(open_gateway, services, ask, SECRET) == [200, 429]
    services = services_of(rate=Allowance(2, "h"))
    assert within(open_gateway, services, ask, SECRET) == [400, 429]  # its one request counted


def test_each_prompt_of_one_request_is_set_aside_and_counts(open_gateway: OpenGateway) -> None:
    async def ask(web: httpx.AsyncClient) -> list[int]:
        bodies = ({**TEXT, "prompt": ["hello"] * count} for count in (3, 2))
        return [(await post(web, body)).status_code for body in bodies]

    services = services_of(quota=Allowance(3 * COST - 1, "day"))
    assert within(open_gateway, services, ask, SECRET)[0] == 400
    services = services_of(quota=Allowance(3 * COST, "day"))
    assert within(open_gateway, services, ask, SECRET) == [200, 429]
    assert used(services) == Spent(3 * COST, 0)
    services = services_of(rate=Allowance(4, "h"))
    assert within(open_gateway, services, ask, SECRET) == [200, 429]
    services = services_of(rate=Allowance(2, "h"))
    assert within(open_gateway, services, ask, SECRET) == [400, 429]


def test_several_prompts_beyond_the_quota_are_refused_before_a_stream_begins(
    open_gateway: OpenGateway,
) -> None:
    """Their tokens are known before the first answer, though the guess was a quarter of them."""
    body = {**TEXT, "prompt": ["x" * 40] * 3, "stream": True}
    services = services_of(quota=Allowance(3 * (40 + 8) - 1, "day"))

    async def ask(web: httpx.AsyncClient) -> int:
        return (await post(web, body)).status_code

    assert within(open_gateway, services, ask, SECRET) == 400
    assert used(services) == Spent(0, 0)
    services = services_of(quota=Allowance(3 * (40 + 8), "day"))
    assert within(open_gateway, services, ask, SECRET) == 200
    assert used(services).reserved == 0


def test_who_leaves_early_is_charged_for_what_was_computed(
    open_gateway: OpenGateway, engine: TextEngine
) -> None:
    services = services_of(quota=Allowance(10**6, "day"))

    async def ask(web: httpx.AsyncClient) -> None:
        async with streaming(web):
            assert used(services).reserved == len("hello") + 400
        assert used(services).reserved == 0
        assert len("hello") < used(services).used < len("hello") + 400

    within(open_gateway, services, ask, SECRET)

    async def in_a_queue(web: httpx.AsyncClient) -> None:
        """Four fill the cache; the fifth leaves before its prompt was read, and before another
        one's first token, but not before its prompt."""
        full = [asyncio.create_task(post(web, LONG)) for _ in range(4)]
        while engine.engine.statistics().running < 4:
            await asyncio.sleep(0.01)
        waits = asyncio.create_task(post(web, {**LONG, "prompt": "x" * 50}))
        while not engine.engine.statistics().waiting:
            await asyncio.sleep(0.01)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        async with asyncio.timeout(20):
            while used(services).reserved > 4 * (len("hello") + 2 + 400):
                await asyncio.sleep(0.01)
        assert used(services).used == before
        for one in full:
            one.cancel()
        await asyncio.gather(*full, return_exceptions=True)

    services, before = services_of(quota=Allowance(10**6, "day")), 0
    within(open_gateway, services, in_a_queue, SECRET)
    assert used(services).reserved == 0


def test_a_prompt_that_was_read_is_charged_though_nobody_waited_for_a_token(
    open_gateway: OpenGateway, engine: TextEngine
) -> None:
    services = services_of(quota=Allowance(10**6, "day"))
    held, goes_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        held.set()
        goes_on.wait(30)

    async def ask(web: httpx.AsyncClient) -> None:
        model: Any = engine.engine._model  # type: ignore[attr-defined]
        hook = model.get_input_embeddings().register_forward_pre_hook(hold)
        try:
            leaves = asyncio.create_task(post(web))
            await asyncio.to_thread(held.wait, 30)
            leaves.cancel()
            await asyncio.gather(leaves, return_exceptions=True)
        finally:
            hook.remove()
            goes_on.set()

    within(open_gateway, services, ask, SECRET)
    assert used(services) == Spent(len("hello"), 0)


def test_a_refused_request_costs_nothing(open_gateway: OpenGateway) -> None:
    services = services_of(quota=Allowance(10**6, "day"))

    async def ask(web: httpx.AsyncClient) -> list[int]:
        bodies = ({**TEXT, "model": "nobody"}, {**TEXT, "max_tokens": 10**5}, {})
        return [(await post(web, body)).status_code for body in bodies]

    assert within(open_gateway, services, ask, SECRET) == [404, 400, 400]
    assert used(services) == Spent(0, 0)


def test_every_route_with_a_key_counts_and_each_request_once(open_gateway: OpenGateway) -> None:
    router = APIRouter()

    @router.get("/state")
    async def state() -> str:
        return "well"

    async def ask(web: httpx.AsyncClient) -> list[int]:
        paths = ("/v1/models", "/v1/models/tiny-llama", "/moetune/v1/state", "/health", "/ready")
        asked = [await web.get(path) for path in paths for _ in range(2)]
        return [one.status_code for one in asked] + [(await post(web)).status_code]

    for rate in (1, 3):
        services = services_of(rate=Allowance(rate, "h"))
        services = GatewayServices(services.keys, services.limiter, routers=(router,))
        got = within(open_gateway, services, ask, SECRET)
        assert got[:4] == [200] * rate + [429] * (4 - rate)
        assert got[4:6] == [200, 200 if rate > 1 else 429]  # a rate of its own
        assert got[6:] == [200] * 4 + [429]


def test_who_looks_at_the_state_may_still_ask(open_gateway: OpenGateway) -> None:
    router = APIRouter()

    @router.get("/state")
    async def state() -> str:
        return "well"

    async def ask(web: httpx.AsyncClient) -> list[int]:
        looks = [(await web.get("/moetune/v1/state")).status_code for _ in range(3)]
        return [*looks, *[(await post(web)).status_code for _ in range(3)]]

    keys = services_of(rate=Allowance(2, "h")).keys
    for services, secret in (
        (GatewayServices(keys, routers=(router,)), SECRET),
        (GatewayServices(limiter=RateLimiter(LimitsSpec(rate="2/h")), routers=(router,)), None),
    ):
        assert within(open_gateway, services, ask, secret) == [200, 200, 429] * 2


def test_a_prompt_is_guessed_from_its_bytes_and_ids_are_counted() -> None:
    def likely(kind: type[CompletionBase], longest: int, **fields: Any) -> tuple[int, int]:
        return parse(kind, json.dumps({"model": "m", **fields}).encode()).likely_tokens(longest)

    assert likely(CompletionBody, 9, prompt="hello", max_tokens=8) == (2, 8)
    assert likely(CompletionBody, 4, prompt="日本語日", max_tokens=8) == (3, 4)
    assert likely(CompletionBody, 30, prompt=[4, 5, 6], n=3) == (3, 90)
    assert likely(CompletionBody, 30, prompt=["hello", [4, 5, 6]], n=3) == (2 + 3, 180)
    messages = [{"role": "user", "content": "x" * 100}] * 2
    assert likely(ChatBody, 30, messages=messages, n=2) == (2 * 29, 60)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_just_fits_the_quota_is_measured_and_answered(
    open_gateway: OpenGateway, engine: TextEngine, stream: bool
) -> None:
    tokenizer: Any = engine._tokenizer
    chat = {"model": "tiny-llama", "messages": [{"role": "user", "content": "hi"}] * 10}
    template = tokenizer.apply_chat_template(
        chat["messages"], add_generation_prompt=True, tokenize=False
    )
    tokens = len(tokenizer(template)["input_ids"])

    async def ask(web: httpx.AsyncClient) -> list[httpx.Response]:
        body = {**chat, "max_tokens": 8, "stream": stream}
        return [await web.post("/v1/chat/completions", json=body) for _ in range(2)]

    services = services_of(quota=Allowance(tokens + 8, "day"))
    first, second = within(open_gateway, services, ask, SECRET)
    assert first.status_code == 200
    assert used(services).used >= tokens
    assert (second.status_code, second.json()["error"]["code"]) == (429, "insufficient_quota")


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_counts_beyond_the_quota_is_refused_by_its_field_and_costs_nothing(
    open_gateway: OpenGateway, stream: bool
) -> None:
    """The tiny tokenizer has a token for each byte: four times the guess."""
    ids = [5] * 60

    async def ask(web: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = (
            {"prompt": "x" * 60},
            {"prompt": ids},
            {"prompt": "x" * 45},
            {"max_tokens": 60},
            {"prompt": "x" * 40},
            {"prompt": "x" * 40, "max_tokens": 2},
        )
        return [await post(web, {**TEXT, "stream": stream, **one}) for one in bodies]

    services = services_of(quota=Allowance(50, "day"))
    answers = within(open_gateway, services, ask, SECRET)
    assert [one.status_code for one in answers] == [400, 400, 400, 400, 200, 429]
    fields = [one.json()["error"]["param"] for one in answers[:4]]
    assert fields == ["prompt", "prompt", "max_tokens", "max_tokens"]
    assert 40 < used(services).used <= 48
    assert used(services).reserved == 0


@pytest.mark.parametrize("when", ["before the last save", "after the last save"])
def test_a_gateway_that_closes_while_it_saves_charges_once(tmp_path: Path, when: str) -> None:
    url = f"sqlite:///{tmp_path}/moetune.db"
    store, key_sync, limiter = KeyStore(url), KeySync(url), RateLimiter()
    caller = key(quota=Allowance(1000, "day")).caller
    reservation = limiter.reserve(caller, 70, 0)
    assert reservation is not None
    reservation.settle(70)
    started, goes_on = threading.Event(), threading.Event()
    first = threading.Event()
    exchange = key_sync._exchange

    def slow(save: int, spent: Mapping[UsageKey, Spent]) -> Usage:
        if first.is_set():
            return exchange(save, spent)
        first.set()
        started.set()
        goes_on.wait(20)
        return exchange(save, spent)

    async def main() -> None:
        key_sync._exchange = slow  # type: ignore[method-assign]
        running = asyncio.create_task(key_sync.run(KeyRing(), limiter))
        await asyncio.to_thread(started.wait, 20)
        if when == "before the last save":
            asyncio.get_running_loop().call_later(0.05, goes_on.set)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        goes_on.set()

    asyncio.run(main())  # waits for its threads
    assert sum(store.usage().values()) == 70
    assert sum(store.exchange("another", 0, {}).values()) == 70
    store.close()
