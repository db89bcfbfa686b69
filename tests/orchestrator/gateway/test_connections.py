"""Heads that are too large or do not end, sent to a real server."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest
import uvicorn

from orchestrator.gateway import header_middleware
from orchestrator.gateway.header_middleware import MAX_HEAD_BYTES, Connection
from orchestrator.serve.proxy import free_port

GET = b"GET / HTTP/1.1\r\nhost: a\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body, after a second where the path says so."""
    length, message = 0, {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        length += len(message.get("body", b""))
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(header_middleware, "HEAD_SECONDS", 0.5)
    port = free_port("127.0.0.1", 0)
    config = uvicorn.Config(app, port=port, lifespan="off", log_level="critical", http=Connection)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join(20)


def said(port: int, *pieces: bytes, endless: bytes = b"", most: int = 2**22) -> tuple[bytes, int]:
    """What the server answers until it closes, and how much of `endless` it took before."""
    taken = 0
    with closing(socket.create_connection(("127.0.0.1", port), 10)) as wire, suppress(OSError):
        for piece in pieces:
            wire.sendall(piece)
        while endless and taken < most:
            wire.settimeout(0.001)
            with suppress(TimeoutError):
                return wire.recv(2**16), taken
            wire.settimeout(10)
            wire.sendall(endless)
            taken += len(endless)
        answer = b""
        while piece := wire.recv(2**16):
            answer += piece
        return answer, taken
    return b"", taken


@pytest.mark.parametrize(
    ("begun", "endless"),
    [
        (GET + b"x: ", b"a" * 5000),
        (GET, b"x: y\r\n" * 500),
        (b"GET /", b"a" * 5000),
        (POST + b"0\r\n", b"x: y\r\n" * 500),
        (POST + b"0\r\nx: ", b"a" * 5000),
        (POST + b"3;", b"a" * 5000),
    ],
    ids=["value", "headers", "path", "trailers", "trailer", "extension"],
)
def test_what_never_ends_is_refused_at_its_limit(port: int, begun: bytes, endless: bytes) -> None:
    answer, taken = said(port, begun, endless=endless)
    assert taken < 2 * MAX_HEAD_BYTES
    # A body that is being read has its own limit; here the application waits for its end.
    assert answer.startswith(b"HTTP/1.1 431 ") or (begun.startswith(b"POST") and not answer)
    assert httpx.get(f"http://127.0.0.1:{port}").text == "0"


def test_a_large_head_in_one_piece_is_refused_too(port: int) -> None:
    answer, _ = said(port, GET + b"x: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"error": {"message": "the headers have more than 65536 bytes"' in answer
    fits = httpx.get(f"http://127.0.0.1:{port}", headers={"x": "a" * (MAX_HEAD_BYTES - 500)})
    assert fits.text == "0"


def test_a_head_that_does_not_end_is_refused_after_its_time(port: int) -> None:
    answer, _ = said(port, GET)
    assert answer.startswith(b"HTTP/1.1 408 ")
    # Byte by byte makes it no longer.
    _, taken = said(port, GET, endless=b"a", most=10**6)
    assert taken < 10**4


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    assert said(port) == (b"", 0)


def test_what_is_no_http_is_refused(port: int) -> None:
    answer, _ = said(port, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"error": {' in answer


def test_a_connection_goes_on_from_request_to_request(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as web:
        for _ in range(3):
            pieces = iter([b"x"] * 300)
            assert web.post("/", content=pieces).text == "300"
            assert web.get("/").text == "0"


def test_a_long_body_in_pieces_is_no_large_head(port: int) -> None:
    pieces = [b"1\r\nx\r\n" * 1000] * 50
    answer, _ = said(port, POST, *pieces, b"0\r\n\r\nGET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert b"50003" in answer


def test_half_a_head_behind_a_request_does_not_cut_its_answer(port: int) -> None:
    answer, _ = said(port, b"GET /slow HTTP/1.1\r\n\r\n", b"GET /")
    assert answer.startswith(b"HTTP/1.1 200 ")
