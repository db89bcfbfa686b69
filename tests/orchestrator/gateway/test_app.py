"""The gateway over a real engine in this process: answers, streams, refusals, keys, promotions."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.auth.keys import KeyRing, key_hash
from orchestrator.config.limits import LimitsSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices
from orchestrator.registry.models import Version
from orchestrator.registry.promote import promote, rollback
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

KEY = "a key of good length"
HELLO = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": "home", "messages": HELLO, "temperature": 0, "max_tokens": 12}
TEXT: dict[str, Any] = {"model": "home", "prompt": "hello", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def backend(tiny_model_dir: Path) -> Iterator[TextEngine]:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    limits = Limits(max_batch_tokens=64, cache_tokens=1024, max_new_tokens=96, max_queued=4)
    engine = ContinuousEngine(base, limits)
    yield TextEngine(engine, base.tokenizer)
    engine.close()


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]
) -> tuple[Registry, list[Version]]:
    """A registry with three versions, the first promoted to `home`."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    versions = [
        registry.register("study", seed, make_adapter(seed), {"validation": {"loss": 1.0 - seed}})
        for seed in (11, 12, 13)
    ]
    champion(registry, versions[0])
    return registry, versions


def champion(registry: Registry, version: Version, name: str = "home") -> None:
    promote(
        registry, version, name, actor="test", metric="validation/loss", reason="test", force=True
    )


@asynccontextmanager
async def client(
    backend: TextEngine, registry: Registry, key: str | None = None, sent: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    catalog = ModelCatalog(registry, "tiny-llama", backend.load)
    app = create_app(backend, catalog, GatewayServices(KeyRing(key and key_hash(key))))
    headers = [(b"Content-Type", b"application/json")]
    if sent is not None:
        headers.append((b"Authorization", b"Bearer " + sent.encode()))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as web,
    ):
        while not (await web.get("/ready")).is_success:
            await asyncio.sleep(0.02)
        yield web


def ask(
    backend: TextEngine, shop: tuple[Registry, list[Version]], path: str, body: Any, **keys: Any
) -> httpx.Response:
    """One request to a fresh gateway; a body that is no mapping is sent as it stands."""

    async def main() -> httpx.Response:
        async with client(backend, shop[0], **keys) as web:
            content = body if isinstance(body, bytes | str) else json.dumps(body)
            return await web.post(path, content=content)

    return asyncio.run(main())


def events(text: str) -> list[Any]:
    """The events of a stream; the last is checked and left out."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_chat_and_a_completion_answer_and_count(backend: TextEngine, shop: Any) -> None:
    version = shop[1][0]
    reply = ask(backend, shop, "/v1/chat/completions", CHAT).json()
    assert reply["object"] == "chat.completion"
    assert (reply["model"], reply["system_fingerprint"]) == (f"home@{version.id}", version.id)
    [choice] = reply["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    tokens = len("user\nhello\nassistant\n") + 3  # of one byte each, and the template's marks
    assert reply["usage"] == {
        "prompt_tokens": tokens,
        "completion_tokens": 12,
        "total_tokens": tokens + 12,
    }
    reply = ask(backend, shop, "/v1/completions", TEXT).json()
    assert reply["object"] == "text_completion"
    assert reply["usage"]["prompt_tokens"] == len("hello")
    assert reply["choices"][0]["text"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_joins_to_the_whole_answer(backend: TextEngine, shop: Any, path: str) -> None:
    body = CHAT if "chat" in path else TEXT
    whole = ask(backend, shop, path, body).json()
    extra = {"stream": True, "stream_options": {"include_usage": True}}
    response = ask(backend, shop, path, {**body, **extra})
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(response.text)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    choices = [choice for event in pieces for choice in event["choices"]]
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["length"]
    if "chat" in path:
        assert choices[0]["delta"]["role"] == "assistant"
        shown = "".join(choice["delta"].get("content", "") for choice in choices)
        assert shown == whole["choices"][0]["message"]["content"]
    else:
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert {event["model"] for event in pieces} == {whole["model"]}


def test_a_stop_string_ends_the_answer(backend: TextEngine, shop: Any) -> None:
    body = {**TEXT, "max_tokens": 40, "temperature": 1, "seed": 5}
    text = ask(backend, shop, "/v1/completions", body).json()["choices"][0]["text"]
    stop = next(letter for letter in text[5:] if letter != "�" and letter not in text[:5])
    body["stop"] = ["not in it", stop]
    reply = ask(backend, shop, "/v1/completions", body).json()
    assert reply["choices"][0]["text"] == text[: text.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] < 40


def test_the_model_picks_the_adapter(backend: TextEngine, shop: Any) -> None:
    registry, versions = shop
    champion(registry, versions[1], "other")
    exact = f"home@{versions[0].id[:8]}"
    answers = {}
    for model in ("home", exact, "other", "tiny-llama"):
        reply = ask(backend, shop, "/v1/completions", {**TEXT, "model": model, "max_tokens": 40})
        answers[model] = reply.json()["choices"][0]["text"]
    assert answers["home"] == answers[exact]
    assert len(set(answers.values())) == 3

    async def main() -> tuple[Any, Any]:
        async with client(backend, registry) as web:
            listed, one = await web.get("/v1/models"), await web.get(f"/v1/models/{exact}")
            return listed.json(), one.json()

    listed, one = asyncio.run(main())
    assert [model["id"] for model in listed["data"]] == ["tiny-llama", "home", "other"]
    assert one["id"] == exact


def obeying(schema: Any) -> dict[str, Any]:
    """A response_format."""
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


BAD = [
    ("{", None, 400),
    ("[]", None, 400),
    ('"text"', None, 400),
    (b"\xff\xfe", None, 400),
    ("[" * 100_000, None, 400),
    ({}, "model", 400),
    ({"model": "home"}, "messages", 400),
    ({**CHAT, "model": 3}, "model", 400),
    ({**CHAT, "model": ""}, "model", 400),
    ({**CHAT, "model": "nobody"}, "model", 404),
    ({**CHAT, "model": "home@000000000000"}, "model", 404),
    ({**CHAT, "model": "home@../../etc"}, "model", 404),
    ({**CHAT, "model": "../../etc/passwd"}, "model", 404),
    ({**CHAT, "messages": []}, "messages", 400),
    ({**CHAT, "messages": "hello"}, "messages", 400),
    ({**CHAT, "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", 400),
    ({**CHAT, "messages": [{"role": "user"}]}, "messages.0.content", 400),
    ({**CHAT, "messages": [{"role": "user", "content": 1}]}, "messages.0.content", 400),
    ({**CHAT, "messages": [{**HELLO[0], "name": "x"}]}, "messages.0.name", 400),
    (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content",
        400,
    ),
    ({**CHAT, "messages": [{"role": "user", "content": "x" * 600}]}, "messages", 400),
    ({**CHAT, "temperature": -0.1}, "temperature", 400),
    ({**CHAT, "temperature": 2.1}, "temperature", 400),
    ({**CHAT, "temperature": "hot"}, "temperature", 400),
    ('{"model": "home", "messages": [], "temperature": NaN}', "temperature", 400),
    ({**CHAT, "top_p": 0}, "top_p", 400),
    ({**CHAT, "top_p": 1.5}, "top_p", 400),
    ({**CHAT, "max_tokens": 0}, "max_tokens", 400),
    ({**CHAT, "max_tokens": 1.5}, "max_tokens", 400),
    ({**CHAT, "max_tokens": True}, "max_tokens", 400),
    ({**CHAT, "max_tokens": 97}, "max_tokens", 400),
    ({**CHAT, "max_tokens": 10**30}, "max_tokens", 400),
    ({**CHAT, "max_completion_tokens": 5}, None, 400),
    ({**CHAT, "n": 0}, "n", 400),
    ({**CHAT, "n": 9}, "n", 400),
    ({**CHAT, "n": 2, "moetune": {"routing": "summary"}}, None, 400),
    ({**CHAT, "moetune": {"routing": "all"}}, "moetune.routing", 400),
    ({**CHAT, "moetune": {}}, "moetune.routing", 400),
    ({**CHAT, "top_k": 0}, "top_k", 400),
    ({**CHAT, "top_k": 1.5}, "top_k", 400),
    ({**CHAT, "seed": 2**64}, "seed", 400),
    ({**CHAT, "stop": ["a"] * 5}, "stop", 400),
    ({**CHAT, "stop": ""}, "stop.0", 400),
    ({**CHAT, "stream": "yes"}, "stream", 400),
    ({**CHAT, "stream_options": {"include_usage": True}}, None, 400),
    ({**CHAT, "stream": True, "stream_options": {"extra": 1}}, "stream_options.extra", 400),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools", 400),
    ({**CHAT, "logprobs": 3}, "logprobs", 400),
    ({**CHAT, "top_logprobs": 3}, None, 400),
    ({**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs", 400),
    ({**CHAT, "response_format": "json"}, "response_format", 400),
    ({**CHAT, "response_format": {"type": "xml"}}, "response_format.type", 400),
    ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format", 400),
    ({**CHAT, "response_format": obeying({"type": "nonsense"})}, "response_format", 400),
    ({**CHAT, "response_format": obeying({"pattern": "(("})}, "response_format", 400),
    ({**CHAT, "response_format": obeying({"$ref": "http://a/b"})}, "response_format", 400),
    ({**CHAT, "response_format": obeying({"not": {"const": 1}})}, "response_format", 400),
    ({**CHAT, "frequency_penalty": 0.5}, "frequency_penalty", 400),
    ({**CHAT, "temprature": 1}, "temprature", 400),
    (
        {**CHAT, "messages": [{"role": "user", "content": "x" * LimitsSpec().max_body_bytes}]},
        None,
        413,
    ),
]
BAD_TEXT = [
    ({**TEXT, "prompt": ""}, "prompt", 400),
    ({**TEXT, "prompt": []}, "prompt", 400),
    ({**TEXT, "prompt": [5, -1]}, "prompt", 400),
    ({**TEXT, "prompt": [5, 10**12]}, "prompt", 400),
    ({**TEXT, "prompt": [5, "x"]}, "prompt.1", 400),
    ({**TEXT, "prompt": ["one", 2]}, "prompt.1", 400),
    ({**TEXT, "prompt": "x" * 513}, "prompt", 400),
    ({**TEXT, "prompt": "x" * 505}, "max_tokens", 400),
    ({**TEXT, "prompt": None}, "prompt", 400),
    ({**TEXT, "echo": True}, "echo", 400),
    ({**TEXT, "logprobs": 21}, "logprobs", 400),
    ({**TEXT, "logprobs": True}, "logprobs", 400),
    ({**TEXT, "best_of": 2}, "best_of", 400),
    ({**TEXT, "messages": HELLO}, "messages", 400),
]
TABLE = [("/v1/chat/completions", *row) for row in BAD] + [
    ("/v1/completions", *row) for row in BAD_TEXT
]


def test_bad_input_is_refused_by_name_and_harms_nobody(backend: TextEngine, shop: Any) -> None:
    """Every row of the table, whole and streamed, while somebody else's answer is generated."""
    wrong = []

    async def post(web: httpx.AsyncClient, path: str, body: Any, param: str | None, status: int):
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        response = await web.post(path, content=content)
        error = response.json()["error"]
        fine = response.status_code == status and error["param"] == param
        if not (fine and error["message"] and "\n" not in error["message"]):
            wrong.append((path, str(body)[:120], response.status_code, error))

    async def main() -> list[str]:
        async with client(backend, shop[0]) as web:
            other = [asyncio.create_task(web.post("/v1/completions", json=TEXT)) for _ in range(2)]
            for path, body, param, status in TABLE:
                await post(web, path, body, param, status)
                if isinstance(body, dict) and not body.keys() & {"stream", "stream_options"}:
                    await post(web, path, {**body, "stream": True}, param, status)
            return [(await task).json()["choices"][0]["text"] for task in other]

    texts = asyncio.run(main())
    assert not wrong
    assert texts[0] == texts[1]
    assert backend.engine.healthy


def test_routes_that_are_not_there_have_openais_error_body(backend: TextEngine, shop: Any) -> None:
    async def main() -> list[httpx.Response]:
        async with client(backend, shop[0]) as web:
            return [
                await web.get("/nothing"),
                await web.get("/v1/chat/completions"),
                await web.get("/v1/models/nobody"),
                await web.get("/docs"),
            ]

    responses = asyncio.run(main())
    assert [response.status_code for response in responses] == [404, 405, 404, 404]
    assert all(response.json()["error"]["message"] for response in responses)


@pytest.mark.parametrize(
    "sent", [None, "wrong", KEY + "x", KEY[:-1], "", "ключ", f"{KEY} {KEY}"], ids=repr
)
def test_without_the_key_nothing_is_answered(
    backend: TextEngine, shop: Any, sent: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> list[httpx.Response]:
        async with client(backend, shop[0], KEY, sent) as web:
            return [
                await web.get("/v1/models"),
                await web.get("/v1/models/home"),
                await web.post("/v1/completions", json=TEXT),
                await web.post("/v1/chat/completions", content=b"{"),
                await web.get("/health"),
            ]

    *guarded, health = asyncio.run(main())
    assert [response.status_code for response in guarded] == [401] * 4
    assert all(r.json()["error"]["code"] == "invalid_api_key" for r in guarded)
    assert health.status_code == 200
    assert KEY not in caplog.text


def test_with_the_key_everything_is(backend: TextEngine, shop: Any) -> None:
    assert ask(backend, shop, "/v1/completions", TEXT, key=KEY, sent=KEY).status_code == 200


def test_too_many_requests_are_429_with_retry_after(backend: TextEngine, shop: Any) -> None:
    long = {**TEXT, "prompt": "x" * 400, "max_tokens": 96}  # two of them fill the cache

    async def main() -> list[httpx.Response]:
        async with client(backend, shop[0]) as web:
            return await asyncio.gather(*(web.post("/v1/completions", json=long) for _ in range(9)))

    responses = asyncio.run(main())
    refused = [response for response in responses if response.status_code == 429]
    assert len(refused) == 3
    assert all(response.headers["retry-after"] == "1" for response in refused)
    assert {r.status_code for r in responses} == {200, 429}


def test_a_promotion_under_load_fails_no_request_and_mixes_no_answer(
    backend: TextEngine, shop: Any
) -> None:
    registry, versions = shop
    champion(registry, versions[2], "live")
    body = {**TEXT, "model": "live", "max_tokens": 40}

    async def alone(web: httpx.AsyncClient, version: Version) -> str:
        reply = await web.post("/v1/completions", json={**body, "model": f"live@{version.id}"})
        return reply.json()["choices"][0]["text"]

    async def main() -> tuple[list[Any], dict[str, str]]:
        async with client(backend, registry) as web:
            seen: list[Any] = []
            done = asyncio.Event()

            async def loop() -> None:
                while not done.is_set():
                    seen.append((await web.post("/v1/completions", json=body)).json())

            loops = [asyncio.create_task(loop()) for _ in range(3)]
            for version in (versions[0], versions[1], versions[0]):
                await asyncio.to_thread(champion, registry, version, "live")
                start = len(seen)
                async with asyncio.timeout(20):
                    while not any(r.get("system_fingerprint") == version.id for r in seen[start:]):
                        await asyncio.sleep(0.02)
            done.set()
            await asyncio.gather(*loops)
            return seen, {v.id: await alone(web, v) for v in versions}

    seen, expected = asyncio.run(main())
    assert not [reply for reply in seen if "error" in reply]
    assert {reply["system_fingerprint"] for reply in seen} >= {v.id for v in versions[:2]}
    for reply in seen:
        assert reply["choices"][0]["text"] == expected[reply["system_fingerprint"]]


def test_an_endpoint_is_ready_once_a_replica_holds_the_champion(
    backend: TextEngine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
    champion(registry, registry.register("s", 1, make_adapter(31), {}))
    replicas_up = False

    async def load(adapter: AdapterRef) -> None:
        if not replicas_up:
            raise ConnectionError("no replica is there")
        await backend.load(adapter)

    async def main() -> None:
        nonlocal replicas_up
        catalog = ModelCatalog(registry, "tiny-llama", load)
        transport = httpx.ASGITransport(create_app(backend, catalog))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as web:
            await catalog.refresh()
            assert (await web.get("/ready")).status_code == 503
            replicas_up = True
            await catalog.refresh()
            assert (await web.get("/ready")).is_success
            assert "home" in catalog.ids

    asyncio.run(main())


def test_an_unreadable_registry_and_a_lost_version_keep_the_last_champion(
    backend: TextEngine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)
    good, lost = (registry.register("s", n, make_adapter(20 + n), {}) for n in (1, 2))
    champion(registry, good)
    (tmp_path / "elsewhere").mkdir()

    async def fingerprint(web: httpx.AsyncClient) -> str:
        return str((await web.post("/v1/completions", json=TEXT)).json()["system_fingerprint"])

    async def main() -> None:
        catalog = ModelCatalog(registry, "tiny-llama", backend.load)
        app = create_app(backend, catalog)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as web:
            await catalog.refresh()
            assert await fingerprint(web) == good.id
            champion(registry, lost)
            (lost.folder / "adapter_model.safetensors").write_bytes(b"damaged")
            await catalog.refresh()
            assert await fingerprint(web) == good.id
            rollback(registry, "home", actor="test", reason="test")
            database = tmp_path / "moetune.db"
            database.rename(tmp_path / "elsewhere" / "moetune.db")
            database.mkdir()  # SQLite cannot open a folder
            registry.close()
            await catalog.refresh()
            assert not catalog.readable
            assert await fingerprint(web) == good.id
            unknown = await web.post("/v1/completions", json={**TEXT, "model": "home@abcdef"})
            assert unknown.status_code == 503
            database.rmdir()
            (tmp_path / "elsewhere" / "moetune.db").rename(database)
            await catalog.refresh()
            assert catalog.readable

    asyncio.run(main())
