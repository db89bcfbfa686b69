"""A second answer to a request, by a version on trial: compared, and never returned."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from orchestrator.gateway.request_context import RequestContext
from workers.config.base import InputError
from workers.engine.request import Chunk

log = logging.getLogger(__name__)
AT_A_TIME = 4
"""Further requests have no shadow while so many run: a shadow must not crowd out what is asked."""


class Shadows:
    """The shadows of one gateway."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def begin(
        self, shadow: RequestContext, chunks: AsyncGenerator[Chunk], returned: RequestContext
    ) -> None:
        """Generate beside the answer that is returned, if there is room."""
        if len(self._running) < AT_A_TIME:
            task = asyncio.create_task(_run(shadow, chunks, returned))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Stop all of them."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def _run(
    shadow: RequestContext, chunks: AsyncGenerator[Chunk], returned: RequestContext
) -> None:
    try:
        with shadow.until_failure():
            async for _ in shadow.follow(chunks):
                pass
            await returned.ended.wait()
        if returned.whole:  # a client that leaves says nothing of the shadow
            shadow.agrees(returned.tokens)
        shadow.end()
    except InputError as error:
        log.info("a shadow was refused: %s", error)
    except Exception:
        log.exception("a shadow failed")
