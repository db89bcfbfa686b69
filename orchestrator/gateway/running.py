"""The requests that are being answered, and how a gateway ends without cutting one off."""

import asyncio
from contextlib import suppress

from orchestrator.gateway.request_context import RequestContext
from workers.engine.request import RequestError


class InFlight:
    """All requests between arrival and end."""

    def __init__(self) -> None:
        self.draining = False
        """Whether no more are let in."""
        self._running: set[RequestContext] = set()

    @property
    def count(self) -> int:
        """Requests that have not ended."""
        return len(self._still())

    def add(self, answering: RequestContext) -> None:
        """Let a request in; RequestError 503 while draining."""
        if self.draining:
            raise RequestError("the gateway is closing", None, 503, "closing")
        self._running = {*self._still(), answering}

    async def drain(self, seconds: float) -> None:
        """Let nothing more in, and wait for the last to end, but not longer than this."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for answering in self._still():
                    await answering.ended.wait()

    def _still(self) -> set[RequestContext]:
        return {answering for answering in self._running if not answering.ended.is_set()}
