"""Keeps gauges shown: Ray drops one that was not set for two of its reporting intervals (10 s by
default)."""

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable

REFRESH_SECONDS = 2.0

log = logging.getLogger(__name__)


class Refresh:
    """Sets gauges again and again in a thread of its own, until it is ended or `owner` is gone."""

    def __init__(
        self, show: Callable[[], None], owner: object = None, seconds: float = REFRESH_SECONDS
    ) -> None:
        """`show` sets the gauges; it must not hold `owner`, which would never go then."""
        self._ended = threading.Event()
        if owner is not None:
            weakref.finalize(owner, self._ended.set)
        arguments = (show, self._ended, seconds)
        threading.Thread(target=_go_on, args=arguments, name="metrics", daemon=True).start()

    def end(self) -> None:
        """Set none from now on."""
        self._ended.set()


async def keep_showing(show: Callable[[], None], seconds: float = REFRESH_SECONDS) -> None:
    """Set gauges until cancelled."""
    refresh = Refresh(show, seconds=seconds)
    try:
        await asyncio.Event().wait()
    finally:
        refresh.end()


def _go_on(show: Callable[[], None], ended: threading.Event, seconds: float) -> None:
    while not ended.wait(seconds):
        try:
            show()
        except Exception:
            log.exception("metrics were not set")
