"""Keeps a gateway's keys and their usage as the database has them."""

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from orchestrator.auth.keys import Key, KeyRing
from orchestrator.auth.rate_limit import RateLimiter, Spent, Usage, UsageKey

if TYPE_CHECKING:
    from orchestrator.auth.key_store import KeyStore

log = logging.getLogger(__name__)
POLL_SECONDS = 1
"""How soon a key that was revoked opens nothing any more."""


class KeySync:
    """Reads the keys and writes what they used, every second. Opens the database on first use."""

    def __init__(self, url: str) -> None:
        """`url`: the registry's SQLAlchemy URL."""
        self._url = url
        self._gateway, self._saves = secrets.token_hex(8), count()
        self._opened: KeyStore | None = None

    def read(self) -> Sequence[Key]:
        """All keys. Blocks."""
        return self._store.all()

    def given_up(self) -> bool:
        """See `KeyStore.given_up`. Blocks."""
        return self._store.given_up()

    async def run(self, ring: KeyRing, limiter: RateLimiter) -> None:
        """Go on until cancelled. While the database is away, nothing is lost."""
        try:
            while True:
                await asyncio.to_thread(ring.refresh)
                await self._save(limiter)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await self._save(limiter)

    async def _save(self, limiter: RateLimiter) -> None:
        try:
            await limiter.exchange(partial(self._exchange, next(self._saves)))
        except Exception as error:
            log.debug("usage is not saved now: %s", error)  # the ring has said it already

    def _exchange(self, save: int, spent: Mapping[UsageKey, Spent]) -> Usage:
        return self._store.exchange(self._gateway, save, spent)

    @property
    def _store(self) -> "KeyStore":
        if self._opened is None:
            from orchestrator.auth.key_store import KeyStore

            self._opened = KeyStore(self._url)
        return self._opened
