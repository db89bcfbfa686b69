"""Bodies that are too large or do not end, in front of any application."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from orchestrator.gateway.body import BodyLimit

LIMIT = 1000
CHUNKED = [(b"transfer-encoding", b"chunked")]


class Wire:
    """A client that sends pieces, and then nothing."""

    def __init__(self, pieces: Iterable[bytes], ends: bool = True) -> None:
        self._pieces, self._ends = list(pieces), ends
        self.taken = 0
        self.answer: list[Any] = []

    async def receive(self) -> Any:
        if not self._pieces:
            await asyncio.Event().wait()
        piece = self._pieces.pop(0)
        self.taken += len(piece)
        more = bool(self._pieces) or not self._ends
        return {"type": "http.request", "body": piece, "more_body": more}

    async def send(self, message: Any) -> None:
        self.answer.append(message)

    @property
    def status(self) -> int:
        [start] = [one for one in self.answer if one["type"] == "http.response.start"]
        return int(start["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.answer[0]["headers"])


async def reader(_: Any, receive: Any, send: Any) -> None:
    """An application that reads all, whatever it hears, and answers with the length."""
    length, message = 0, {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        length += len(message.get("body", b""))
    await answer(send, str(length).encode())


async def hasty(_: Any, __: Any, send: Any) -> None:
    """An application that answers without reading."""
    await answer(send, b"no")


async def early(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answer begins before it reads."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await reader(scope, receive, send)


async def answer(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def exchange(app: Any, wire: Wire, headers: list[tuple[bytes, bytes]], **how: Any) -> Wire:
    async def main() -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        async with asyncio.timeout(10):
            await BodyLimit(app, LIMIT, **how)(scope, wire.receive, wire.send)

    asyncio.run(main())
    return wire


def length(of: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", str(of).encode())]


@pytest.mark.parametrize("declared", [LIMIT + 1, 10**12, 10**40])
def test_a_content_length_above_the_limit_is_refused_with_nothing_read(declared: int) -> None:
    wire = exchange(reader, Wire([b"x"] * 10), length(declared))
    assert (wire.status, wire.taken) == (413, 0)
    error = json.loads(wire.answer[1]["body"])["error"]
    assert error["message"] == "the body has more than 1000 bytes"
    assert wire.headers[b"connection"] == b"close"


def test_chunks_are_counted_as_they_come() -> None:
    wire = exchange(reader, Wire([b"x" * 300] * 100), CHUNKED)
    assert (wire.status, wire.taken) == (413, 1200)
    whole = exchange(reader, Wire([b"x" * 250] * 4), CHUNKED)
    assert (whole.status, whole.answer[1]["body"]) == (200, b"1000")


def test_a_content_length_is_not_believed() -> None:
    assert exchange(reader, Wire([b"x" * 300] * 100), length(10)).status == 413


def test_a_body_that_does_not_end_is_refused_after_its_time() -> None:
    wire = exchange(reader, Wire([b"x"], ends=False), length(10), seconds=0.05)
    assert wire.status == 408


def test_after_the_body_an_application_may_wait_for_its_client() -> None:
    async def waits(_: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.3)
        await answer(send, b"")

    assert exchange(waits, Wire([b"x"]), length(1), seconds=0.05).status == 200


def test_an_answer_that_has_begun_is_cut_off_not_begun_anew() -> None:
    wire = exchange(early, Wire([b"x" * 300] * 100), CHUNKED)
    assert [one["type"] for one in wire.answer] == ["http.response.start"]


def test_a_connection_that_still_carries_a_body_is_closed_after_the_answer() -> None:
    for app, headers, closes in (
        (hasty, length(10), True),
        (hasty, CHUNKED, True),
        (hasty, [], False),
        (reader, length(10), False),
    ):
        wire = exchange(app, Wire([b"x" * 10]), headers, outermost=True)
        assert (wire.headers.get(b"connection") == b"close") is closes
        assert b"connection" not in exchange(app, Wire([b"x" * 10]), headers).headers
