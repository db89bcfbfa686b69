"""Headers that are no text, in front of any application."""

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import Response

from cluster.environment import MAX_BODY_VARIABLE, SERVE_MIDDLEWARE
from orchestrator.gateway.header_middleware import in_front
from orchestrator.serve.proxy import free_port


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


def test_ray_serve_starts_its_server_with_our_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own two functions, in front of an application that reads as its proxy does: all, and
    before it is asked for it."""
    from ray.serve._private import http_util
    from ray.serve.config import HTTPOptions

    path = SERVE_MIDDLEWARE["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    monkeypatch.setattr(http_util, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", path)
    monkeypatch.setenv(MAX_BODY_VARIABLE, "1000")
    read: list[int] = []

    async def eager(_: Any, receive: Any, send: Any) -> None:
        message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            read.append(len(message.get("body", b"")))
        if message["type"] == "http.request":
            await Response("fine")({"type": "http"}, receive, send)

    async def answers(*requests: bytes) -> list[bytes]:
        options = HTTPOptions(host="127.0.0.1", port=free_port("127.0.0.1", 0))
        options = http_util.configure_http_middlewares(options)
        loop = asyncio.get_running_loop()
        task, server = await http_util.start_asgi_http_server(eager, options, event_loop=loop)
        while not server.started:
            await asyncio.sleep(0.01)
        said = [await _said(options.port, request) for request in requests]
        server.should_exit = True
        await task
        return said

    post = b"POST / HTTP/1.1\r\nhost: a\r\n"
    statuses = asyncio.run(
        answers(
            post + b"content-length: 800000000\r\n\r\n" + b"x" * 10**6,
            post
            + b"transfer-encoding: chunked\r\n\r\n"
            + (b"100\r\n" + b"x" * 256 + b"\r\n") * 10**4,
            post + b"x: " + b"a" * 10**6,
            post + b"x: \xff\r\nconnection: close\r\n\r\n",
            post + b"content-length: 3\r\nconnection: close\r\n\r\nabc",
        )
    )
    assert statuses == [b"413", b"413", b"431", b"400", b"200"]
    assert sum(read) < 2 * 10**6


async def _said(port: int, request: bytes) -> bytes:
    """The status of the answer, however much of the request could be sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    with suppress(ConnectionError):
        return (await asyncio.wait_for(reader.readline(), 20)).split()[1]
    return b"closed"
