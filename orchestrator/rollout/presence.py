"""Which names endpoints serve at the moment: every gateway says so in the registry's database."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.rollout.presence_store import PresenceStore

log = logging.getLogger(__name__)
BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0
"""A gateway that is silent for so long is gone."""
_LOOK_SECONDS = 0.2


class Presence:
    """Says what one gateway serves. Opens the database on first use."""

    def __init__(self, url: str, names: Callable[[], Iterable[str]]) -> None:
        """`url`: the registry's SQLAlchemy URL."""
        self._url, self._names = url, names
        self._gateway, self._beats = secrets.token_hex(8), 0
        self._opened: PresenceStore | None = None

    async def run(self) -> None:
        """Go on until cancelled. While the database is away, nothing is said."""
        try:
            while True:
                await self.tell()
                await asyncio.sleep(BEAT_SECONDS)
        finally:
            await self._try(self.leave)

    async def tell(self) -> None:
        """Say it now. Never raises."""
        await self._try(self.beat)

    def beat(self) -> None:
        """Say it once. Blocks."""
        self._beats += 1
        self._store.say(self._gateway, sorted(self._names()), self._beats)

    def leave(self) -> None:
        """Say that this gateway serves nothing any more. Blocks."""
        self._store.forget(self._gateway)
        self._store.close()

    async def _try(self, act: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(act)
        except Exception as error:
            log.debug("what is served is not told now: %s", error)  # the catalogue has warned

    @property
    def _store(self) -> "PresenceStore":
        if self._opened is None:
            self._opened = _open(self._url)
        return self._opened


def is_served(url: str, name: str, patience: float = SILENT_SECONDS) -> bool:
    """Whether an endpoint serves the name. Gateways that were killed are told from others by their
    silence, which takes `patience` seconds, and forgotten: no clock of theirs has a say."""
    with closing(_open(url)) as store:
        first = store.beats(name)
        end = time.monotonic() + patience
        while first and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            now = store.beats(name)
            first = {gateway: beats for gateway, beats in first.items() if gateway in now}
            if any(now[gateway] != beats for gateway, beats in first.items()):
                return True
        for gateway, beats in first.items():
            store.forget(gateway, beats)
    return False


def _open(url: str) -> "PresenceStore":
    from orchestrator.rollout.presence_store import PresenceStore

    return PresenceStore(url)
