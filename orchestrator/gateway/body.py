"""What comes in: a request's body, and whether its client is still there."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request

from workers.engine.request import RequestError

GONE = RequestError("the client went away", None, 499, "client_closed_request")
"""What nobody reads; the status that nginx has for it."""
T = TypeVar("T")


@asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """What is in here must be done at `deadline` of the loop's clock; RequestError 504 if not."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise RequestError("this took too long", None, 504, "timeout") from None


async def read_body(request: Request) -> bytes:
    """The body, which must say that it is JSON: what a foreign page can make a browser send
    without asking us first does not. `body_limit` has seen to its length."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("send Content-Type: application/json", None, 415)
    return await request.body()


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled when the client goes away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GONE
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
