"""Server-sent events whose end is noticed, however it comes."""

from collections.abc import AsyncGenerator, AsyncIterator

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from orchestrator.gateway.request_context import RequestContext
from workers.engine.request import Chunk


class EventStream(StreamingResponse):
    """Sends the events of an answer; with it ends the request, and what generates stops."""

    def __init__(
        self, events: AsyncIterator[str], chunks: AsyncGenerator[Chunk], answering: RequestContext
    ) -> None:
        """`events` are made from `chunks`; those are closed even where no event was ever taken."""
        super().__init__(
            answering.noting(events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._chunks, self._answering = chunks, answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            with self._answering.until_failure():
                await super().__call__(scope, receive, send)
        finally:
            self._answering.end()
            await self._chunks.aclose()
