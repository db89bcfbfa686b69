"""Headers that are no text, in front of any application."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.edge.text_headers import in_front


def send(headers: list[tuple[bytes, bytes]]) -> httpx.Response:
    app = FastAPI(middleware=in_front())

    @app.get("/")
    async def answer() -> str:
        return "fine"

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as web:
            return await web.get("/", headers=headers)

    return asyncio.run(get())


@pytest.mark.parametrize("value", [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_a_header_that_is_not_utf8_is_refused_by_its_name(value: bytes) -> None:
    refused = send([(b"X-Fine", b"fine"), (b"X-Odd", value)])
    assert refused.status_code == 400
    assert refused.json()["error"] == {
        "message": "the header x-odd is not UTF-8",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_value",
    }


@pytest.mark.parametrize("value", [b"", b"fine", "café 🙂".encode(), b"\xc2\x85"])
def test_text_is_handed_on(value: bytes) -> None:
    assert send([(b"X-Odd", value)]).status_code == 200
