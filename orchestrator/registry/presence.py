"""Which names endpoints serve at the moment: every gateway says so in the registry's database."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.registry.presence_store import PresenceStore

log = logging.getLogger(__name__)
BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0
"""A gateway that is silent for so long is gone."""
LOST_SECONDS = 600.0
"""After so long other gateways forget it. One that comes back says it anew."""
_LOOK_BEATS = 30
"""A gateway looks for lost ones once in so many beats."""
_LOOK_SECONDS = 0.2


class Presence:
    """Says what one gateway serves. Opens the database on first use."""

    def __init__(
        self,
        url: str,
        names: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url`: the registry's SQLAlchemy URL."""
        self._url, self._names, self._clock = url, names, clock
        self._gateway, self._beats = secrets.token_hex(8), 0
        self._others: dict[str, tuple[int, float]] = {}
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
        if self._beats % _LOOK_BEATS == 0:
            self.forget_lost()

    def forget_lost(self) -> None:
        """Forget the others whose beats have stood still for long before this one's eyes: that
        takes no clock but its own. Blocks."""
        rows = self._store.beats()
        self._others = {one: self._seen(one, rows[one]) for one in rows if one != self._gateway}
        for gateway, (beats, since) in self._others.items():
            if self._clock() - since >= LOST_SECONDS:
                self._store.forget(gateway, beats)

    def _seen(self, gateway: str, beats: int) -> tuple[int, float]:
        """The beats, and when they were first seen."""
        last = self._others.get(gateway)
        return last if last and last[0] == beats else (beats, self._clock())

    def leave(self) -> None:
        """Say that this gateway serves nothing any more. Blocks."""
        self._store.forget(self._gateway)
        self._store.close()

    async def _try(self, act: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(act)
        except Exception as error:
            log.debug("what is served is not told now: %s", error)  # the catalog has warned

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


def is_said_to_be_served(url: str, name: str) -> bool:
    """Whether a gateway has said that it serves the name, be it there or killed. Waits for none."""
    with closing(_open(url)) as store:
        return bool(store.beats(name))


def _open(url: str) -> "PresenceStore":
    from orchestrator.registry.presence_store import PresenceStore

    return PresenceStore(url)
