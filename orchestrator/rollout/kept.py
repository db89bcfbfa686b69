"""Which versions the replicas must not drop for others: those that names lead to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
AGAIN_SECONDS = 0.5
"""Replicas that could not be told are told again after so long."""

Keep = Callable[[Collection[str]], Awaitable[None]]
"""Says on every replica which slots requests for others must not drive out."""


async def keep_all(keep: Keep, led_to: Callable[[], frozenset[str]]) -> None:
    """Tell the replicas whenever it is not what they know, until cancelled. One that starts learns
    it from the registry."""
    told: frozenset[str] | None = None
    while True:
        wanted = led_to()
        try:
            if wanted != told:
                await keep(wanted)
                told = wanted
        except Exception as error:
            log.info("replicas do not know yet which versions to keep: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)
        await asyncio.sleep(POLL_SECONDS)
