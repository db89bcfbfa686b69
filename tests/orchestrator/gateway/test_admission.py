"""What costs much before it is admitted, through every way in: refused, and nobody else waits."""

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest

from orchestrator.gateway.services import GatewayServices
from tests.orchestrator.gateways import OpenGateway
from workers.data.text_encoder import TextEncoder

MULTIPLE = {"type": "integer", "multipleOf": 99_999_999}
CHAT = {"model": "tiny-llama", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "tiny-llama", "max_tokens": 4, "prompt": "hello"}
BIG = "word " * 200_000


def obeying(schema: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    }


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("chat/completions", CHAT | obeying(MULTIPLE), "invalid_schema"),
        ("completions", TEXT | obeying(MULTIPLE) | {"n": 8}, "invalid_schema"),
        ("completions", TEXT | obeying(MULTIPLE) | {"stream": True}, "invalid_schema"),
        ("completions", TEXT | obeying({"enum": ["x" * 70_000]}), "invalid_schema"),
        (
            "chat/completions",
            CHAT | {"messages": [{"role": "user", "content": BIG}]},
            "context_length_exceeded",
        ),
        (
            "chat/completions",
            CHAT | {"messages": [{"role": "user", "content": "x"}] * 4000},
            "context_length_exceeded",
        ),
        ("completions", TEXT | {"prompt": BIG, "n": 8}, "context_length_exceeded"),
        ("completions", TEXT | {"prompt": [7] * 200_000}, "context_length_exceeded"),
        (
            "completions",
            TEXT | {"prompt": BIG, "moetune": {"routing": "tokens"}},
            "context_length_exceeded",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else str(value),
)
def test_what_costs_too_much_is_refused_while_others_are_answered(
    open_gateway: OpenGateway, path: str, body: dict[str, Any], code: str
) -> None:
    async def ask() -> None:
        async with asyncio.timeout(120), open_gateway(GatewayServices()) as web:
            refused, *others = await asyncio.gather(
                web.post(f"/v1/{path}", json=body), *(_hello(web) for _ in range(3))
            )
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == code
        assert all(one.is_success for one in others)

    asyncio.run(ask())


def test_no_prompt_is_encoded_in_the_event_loops_thread(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noting(encode: Any) -> Any:
        def noted(*given: Any) -> Any:
            threads.append(threading.current_thread())
            return encode(*given)

        return noted

    for name in ("chat", "prompt"):
        monkeypatch.setattr(TextEncoder, name, noting(getattr(TextEncoder, name)))

    async def ask() -> None:
        async with asyncio.timeout(120), open_gateway(GatewayServices()) as web:
            for path, body in (("chat/completions", CHAT), ("completions", TEXT | {"n": 2})):
                assert (await web.post(f"/v1/{path}", json=body)).is_success

    asyncio.run(ask())
    assert len(threads) == 3
    assert threading.main_thread() not in threads


async def _hello(web: httpx.AsyncClient) -> httpx.Response:
    return await web.post("/v1/completions", json=TEXT | obeying({"type": "boolean"}))
