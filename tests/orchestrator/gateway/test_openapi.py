"""The gateway against its own description, and against what nobody should send.

Whatever comes: a refusal in the 4xx, never a 5xx, and the next good request is answered.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from orchestrator.auth.keys import KeyRing, key_hash
from orchestrator.config.health import HealthSpec
from orchestrator.config.rollout import GuardSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.management_routes import health_routes
from orchestrator.gateway.openapi import describe
from orchestrator.gateway.services import GatewayServices, RolloutServices
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.router_health.monitor import RouterHealth
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

BASE, KEY = "tiny-llama", "a key of the fuzz"
PATHS = ("/v1/completions", "/v1/chat/completions")
GOOD: dict[str, Any] = {"model": BASE, "prompt": "hello", "temperature": 0, "max_tokens": 4}
CHAT: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "hello"}]}
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
"""Of each route, valid and invalid; the same in each run."""
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
]


class Site:
    """A running gateway and a client of it, in an event loop of their own."""

    def __init__(self, app: Any, runner: asyncio.Runner) -> None:
        self.app, self._runner = app, runner
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._web = httpx.AsyncClient(
            transport=transport,
            base_url="http://localhost",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
        )

    def send(self, method: str, path: str, **fields: Any) -> httpx.Response:
        return self._runner.run(self._web.request(method, path, **fields))

    def well(self) -> bool:
        """Whether a good request is answered."""
        answer = self.send("POST", PATHS[0], json=GOOD)
        return answer.is_success and bool(answer.json()["choices"])


@pytest.fixture(scope="module")
def site(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    limits = Limits(
        max_batch_tokens=64,
        cache_tokens=1024,
        max_new_tokens=6,
        max_prompt_tokens=100,
        max_queued=8,
    )
    engine = ContinuousEngine(base, limits)
    backend, folder = TextEngine(engine, base.tokenizer), tmp_path_factory.mktemp("registry")
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    catalog = ModelCatalog(registry, BASE, backend.load)
    health = RouterHealth.of(HealthSpec(), registry)
    rollout = RolloutServices.of(registry, catalog, GuardSpec(), health.drift)
    routers = (rollout.router, health_routes(health))
    app = create_app(backend, catalog, GatewayServices(KeyRing(key_hash(KEY)), routers=routers))
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        yield Site(app, runner)
        runner.run(lifespan.__aexit__(None, None, None))
    engine.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_is_as_it_says(site: Site, mode: GenerationMode) -> None:
    """Valid and invalid requests of every kind, as schemathesis makes them."""
    config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
    described = schemathesis.openapi.from_dict(describe(site.app), config=config)
    for operation in (found.ok() for found in described.get_all_operations()):
        if mode.is_negative and not operation.body:
            continue  # there is nothing in it that could be wrong

        @BOUNDED
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: schemathesis.Case) -> None:
            case.validate_response(answer(site, case), checks=CHECKS)

        holds()
    assert site.well()


def answer(site: Site, case: schemathesis.Case) -> httpx.Response:
    if isinstance(case.body, dict) and case.meta and case.meta.generation.mode.is_positive:
        case.body["model"] = BASE  # a drawn name would never come further than 404
    asked = case.as_transport_kwargs(base_url="http://localhost")
    prepared = requests.Request(**asked).prepare()
    headers = [(name, value) for name, value in prepared.headers.items()]
    return site.send(
        str(prepared.method), str(prepared.url), headers=headers, content=prepared.body
    )


def test_the_description_names_every_route_and_needs_no_key(site: Site) -> None:
    document = site.send("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    ours = {path for path in document["paths"] if not path.startswith("/moetune/v1/")}
    assert ours == {"/v1/models", "/v1/models/{model}", *PATHS, "/health", "/ready"}
    assert {"/moetune/v1/rollouts", "/moetune/v1/health/{name}"} < document["paths"].keys()
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "422" not in json.dumps(document["paths"])


def test_the_description_is_made_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = site.send("GET", "/openapi.json")
    monkeypatch.setattr(site.app, "openapi", None)  # it is not asked again
    again = site.send("GET", "/openapi.json")
    assert (first.is_success, again.content) == (True, first.content)
    assert again.headers["content-type"] == "application/json"


@pytest.mark.parametrize("body", [GOOD, {**CHAT, "max_tokens": 3}], ids=["text", "chat"])
def test_a_stream_is_as_the_description_says(site: Site, body: dict[str, Any]) -> None:
    path, asked = PATHS["messages" in body], {"stream_options": {"include_usage": True}}
    document = json.loads(site.send("GET", "/openapi.json").content)
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    event = content["text/event-stream"]["schema"]["properties"]["data"]["contentSchema"]
    told = {"logprobs": True, "top_logprobs": 1} if "messages" in body else {"logprobs": 1}
    answer = site.send("POST", path, json={**body, **asked, **told, "stream": True})
    *pieces, last = [line[6:] for line in answer.text.splitlines() if line]
    assert (len(pieces) > 2, last) == (True, "[DONE]")
    for piece in pieces:
        jsonschema.validate(json.loads(piece), {**event, "components": document["components"]})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"object": "error"}, {**event, "components": document["components"]})


def test_a_prompt_may_have_so_many_tokens(site: Site) -> None:
    fits = site.send("POST", PATHS[0], json={**GOOD, "prompt": "x" * 100})
    assert fits.is_success
    refused = site.send("POST", PATHS[0], json={**GOOD, "prompt": "x" * 101})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "prompt")
    assert (error["code"], "at most 100" in error["message"]) == ("context_length_exceeded", True)


DEEP = 30_000
BODIES: list[bytes] = [
    b"",
    b"\x00",
    b"null",
    b"[]",
    b"0",
    b'"model"',
    b"{",
    b"{]",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    json.dumps(GOOD).encode("utf-16"),
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b'{"model":' + b"[" * DEEP + b"]" * DEEP + b"}",
    json.dumps({**CHAT, "messages": [[[[[[[]]]]]]]}).encode(),
    b'{"model": "tiny-llama", "prompt": "a", "prompt": ["b", "c"]}',
    b'{"model": "tiny-llama", "prompt": "\\ud800"}',
    b'{"model": "tiny-llama", "prompt": "\\udc00\\ud800"}',
    b'{"model": "\\ud83d", "prompt": "x"}',
    b'{"model": "tiny-llama", "prompt": "x", "user": "\\ud800"}',
    b'{"model": "tiny-llama", "prompt": "x", "\\ud800": 1}',
    b'{"model": "tiny-llama", "prompt": "x", "seed": 1e400}',
    b'{"model": "tiny-llama", "prompt": "x", "seed": -1e400}',
    b'{"model": "tiny-llama", "prompt": "x", "temperature": Infinity}',
    b'{"model": "tiny-llama", "prompt": "x", "temperature": 0x10}',
    b'{"model": "tiny-llama", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"model": "tiny-llama", "prompt": [' + b"9" * 5000 + b"]}",
]
ODD_TEXTS = [
    "\x00",
    "a\x00b",
    "🙂" * 40,
    "👩‍👩‍👧‍👦",
    "\u202e\u2066\ufeff",
    "e\u0301" * 30,
    "\U0010ffff",
    "<|im_end|>" * 3,
    "<|endoftext|>",
    "{{ 7 * 7 }}{% for %}",
    "'; DROP TABLE moetune_events; --",
    "../../etc/passwd",
    "%00%2e%2e%2f",
    "\r\nX-Header: 1",
]
ODD_VALUES: list[Any] = [
    -1,
    0,
    -0.0,
    1e308,
    5e-324,
    2**31,
    2**63,
    -(2**63) - 1,
    2**200,
    True,
    None,
    "",
    "1",
    [],
    [None],
    {},
    {"$ref": "#"},
    [[]] * 50,
]


def refused_or_answered(site: Site, body: Any, **fields: Any) -> list[str]:
    """What is wrong with the answers to a body: nothing, it is hoped."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = fields.pop("headers", {"content-type": "application/json"})
    wrong = []
    for path in PATHS if isinstance(body, bytes) else PATHS["messages" in body :][:1]:
        answer = site.send("POST", path, content=content, headers=headers)
        if answer.status_code >= 500 or (answer.is_error and not answer.json()["error"]["message"]):
            wrong.append(f"{path} {content[:80]!r} {headers}: {answer.status_code} {answer.text}")
    return wrong


def test_malformed_bodies_are_refused(site: Site) -> None:
    assert [w for body in BODIES for w in refused_or_answered(site, body)] == []
    assert site.well()


def test_odd_texts_and_numbers_are_refused_or_answered(site: Site) -> None:
    bodies: list[Any] = []
    for text in ODD_TEXTS:
        bodies += [{**GOOD, "prompt": text}, {**GOOD, "model": text}, {**GOOD, "stop": text}]
        bodies += [{**GOOD, "user": text}, {**GOOD, text: text}]
        bodies += [{**CHAT, "max_tokens": 2, "messages": [{"role": "user", "content": text}]}]
        bodies += [{**CHAT, "messages": [{"role": text, "content": text}]}]
    fields = sorted(
        {
            *GOOD,
            *CHAT,
            "n",
            "seed",
            "top_p",
            "stop",
            "stream",
            "stream_options",
            "max_completion_tokens",
            "logprobs",
            "response_format",
            "moetune",
            "top_k",
        }
    )
    for short in ({**GOOD, "max_tokens": 1}, {**CHAT, "max_tokens": 1}):
        bodies += [{**short, field: value} for field in fields for value in ODD_VALUES]
    assert [wrong for body in bodies for wrong in refused_or_answered(site, body)] == []
    assert site.well()


def test_cut_and_flipped_bytes_are_refused_or_answered(site: Site) -> None:
    """Mutations of good bodies, the same in each run."""
    draw, wrong = random.Random(5), []
    for _ in range(150):
        raw = bytearray(json.dumps(draw.choice((GOOD, {**CHAT, "max_tokens": 2}))).encode())
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(raw))
            match draw.randrange(3):
                case 0:
                    raw[at] = draw.randrange(256)
                case 1:
                    del raw[at:]
                    raw = raw or bytearray(b"{")
                case _:
                    raw[at:at] = draw.choice((b"{", b"]", b'"', b"\\u", b"\x00", b"\xed\xa0\x80"))
        wrong += refused_or_answered(site, bytes(raw))
    assert wrong == []
    assert site.well()


def test_odd_headers_and_paths_are_refused_or_answered(site: Site) -> None:
    kind = (b"content-type", b"application/json")
    headers: list[list[tuple[bytes, bytes]]] = [
        [(b"content-type", b"\xff\xfe")],
        [(b"content-type", b"application/json; charset=\x00")],
        [(b"content-type", b"multipart/form-data; boundary=")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [kind, (b"authorization", b"\xff" * 50)],
        [kind, (b"authorization", b"Bearer " + b"x" * 60_000)],
        [kind, (b"authorization", b"Bearer"), (b"authorization", b"Basic eDp5")],
        [kind, (b"accept", b"\x00, */*;q=junk"), (b"cookie", b"=;=;\xff")],
        [kind, (b"content-length", b"5")],
        [kind, (b"content-encoding", b"gzip")],
        [kind, (b"origin", b"null"), (b"host", b"\xff")],
        [kind, (b"x-forwarded-for", b"'\"><script>")],
    ]
    wrong = [w for odd in headers for w in refused_or_answered(site, GOOD, headers=odd)]
    assert wrong == []
    paths = ["/v1/models/" + text for text in ("%00", "%ff", "..%2f..", "%ed%a0%80", "a" * 9000)]
    for path in (*paths, "/v1", "//", "/v1/%0a", "/moetune/v1/x", "/?" + "a=b&" * 999):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
            answer = site.send(method, path)
            assert answer.status_code < 500, (method, path, answer.text)
    assert site.well()
