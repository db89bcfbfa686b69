"""Bodies that come compressed: read, refused by name, and held to the limit of what is in them."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message

from orchestrator.gateway.body import BodyLimit
from orchestrator.gateway.errors import add_handlers
from orchestrator.gateway.http import PIECE, Inflate

BODY = json.dumps({"prompt": "hello " * 50}).encode()
LIMIT = 2**20


def app() -> FastAPI:
    """Answers with the body."""
    made = FastAPI()

    @made.post("/")
    async def answer(request: Request) -> str:
        return (await request.body()).decode()

    add_handlers(made)
    made.add_middleware(BodyLimit, LIMIT)
    made.add_middleware(Inflate)
    return made


def post(content: bytes, encoding: str | None = "gzip", size: int = 7) -> httpx.Response:
    """Sent in pieces of so many bytes."""

    async def pieces() -> Any:
        for begin in range(0, len(content), size):
            yield content[begin : begin + size]

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as web:
            headers = {"content-encoding": encoding} if encoding is not None else {}
            return await web.post("/", content=pieces(), headers=headers)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY), " X-GZIP "),
        (gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), "gzip"),
        (BODY, "identity"),
        (BODY, ""),
        (BODY, None),
    ],
)
def test_what_is_in_it_is_read(content: bytes, encoding: str | None) -> None:
    assert post(content, encoding).json() == BODY.decode()
    assert post(content, encoding, size=10**6).json() == BODY.decode()


def test_the_limit_holds_for_what_is_in_it() -> None:
    fits, larger, bomb = (gzip.compress(b"x" * size) for size in (LIMIT, LIMIT + 1, 2**28))
    assert len(bomb) < LIMIT
    assert post(fits, size=10**6).status_code == 200
    for content in (larger, bomb):
        refused = post(content, size=10**6)
        assert (refused.status_code, "more than" in refused.text) == (413, True)


def test_no_piece_is_larger_than_is_counted_at_once() -> None:
    sizes: list[int] = []

    async def reader(_: Any, receive: Any, __: Any) -> None:
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]

    async def receive() -> Message:
        return {"type": "http.request", "body": gzip.compress(b"x" * 2**22), "more_body": False}

    scope = {"type": "http", "headers": [(b"content-encoding", b"gzip")]}
    asyncio.run(Inflate(reader)(scope, receive, None))  # type: ignore[arg-type]
    assert (sum(sizes), max(sizes)) == (2**22, PIECE)


@pytest.mark.parametrize(
    ("content", "encoding", "status", "said"),
    [
        (BODY, "gzip", 400, "says that it is gzip (Content-Encoding), and is none"),
        (zlib.compress(BODY), "gzip", 400, "is none"),
        (gzip.compress(BODY)[:-5], "gzip", 400, "is cut off"),
        (gzip.compress(BODY) + b"more", "gzip", 400, "is none"),
        (BODY, "br", 415, "Content-Encoding: br is not read; send gzip, or none"),
        (BODY, "gzip, gzip", 415, "gzip, gzip is not read"),
    ],
)
def test_what_cannot_be_read_is_named(
    content: bytes, encoding: str, status: int, said: str
) -> None:
    refused = post(content, encoding)
    assert refused.status_code == status
    assert said in refused.json()["error"]["message"]
